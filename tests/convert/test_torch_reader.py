"""Files of both PyTorch formats made by hand: tensors come out, nothing in them runs, damage is named."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from ldm_jax.convert.torch_pickle import Placeholder
from ldm_jax.convert.torch_reader import OLD_MAGIC, read_torch, read_torch_object


class Global:
    """Pickles as a reference to module.name, which need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    def __init__(self, kind, key, array):
        self.kind, self.key, self.array = kind, key, array


class Call:
    """Pickles as the call function(*args), followed by `state` as its __setstate__."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args, self.state) if self.state else (self.function, self.args)


class Pickler(pickle._Pickler):
    """Python's own pickler with torch's persistent ids; `old` adds their sixth entry."""

    old = False

    def persistent_id(self, value):
        if isinstance(value, Storage):
            pid = ("storage", Global("torch", value.kind), value.key, "cuda:0", value.array.size)
            return (*pid, None) if self.old else pid
        return None

    def save_global_name(self, value):
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    def save_reduce(self, func, args, *rest, **named):
        if isinstance(func, Global):
            self.save(func)
            self.save(args)
            self.write(pickle.REDUCE)
            if "obj" in named:
                self.memoize(named["obj"])
            if rest and rest[0] is not None:
                self.save(rest[0])
                self.write(pickle.BUILD)
        else:
            super().save_reduce(func, args, *rest, **named)

    dispatch = pickle._Pickler.dispatch | {Global: save_global_name}


def pickled(value, old=False):
    file = io.BytesIO()
    pickler = Pickler(file, 2)
    pickler.old = old
    pickler.dump(value)
    return file.getvalue()


def tensor(storage, shape, strides, offset=0):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, OrderedDict())


def write_zip(path, value, storages, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        archive.writestr("archive/byteorder", sys.byteorder)
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_old(path, value, storages):
    with open(path, "wb") as file:
        for part in (OLD_MAGIC, 1001, {"little_endian": True}):
            pickle.dump(part, file, 2)
        file.write(pickled(value, old=True))
        pickle.dump([s.key for s in storages], file, 2)
        for s in storages:
            file.write(struct.pack("<q", s.array.size) + s.array.tobytes())


NUMBERS = np.arange(24, dtype=np.float32)
FORMATS = pytest.mark.parametrize("write", [write_zip, write_old])


@FORMATS
def test_views_share_a_storage(tmp_path, write):
    storage = Storage("FloatStorage", "0", NUMBERS)
    other = Storage("LongStorage", "1", np.array([7], np.int64))
    state = OrderedDict(
        whole=tensor(storage, (4, 6), (6, 1)),
        transposed=tensor(storage, (6, 4), (1, 6)),
        part=tensor(storage, (2, 3), (6, 2), offset=7),
        expanded=tensor(storage, (3, 2), (0, 1), offset=4),
        empty=tensor(storage, (0, 3), (3, 1)),
        count=tensor(other, (), ()),
    )
    parameter = Global("torch._utils", "_rebuild_parameter")
    state["parameter"] = Call(parameter, state["part"], True, OrderedDict())
    write(tmp_path / "x.ckpt", {"state_dict": state, "epoch": 3}, [storage, other])
    read = read_torch(tmp_path / "x.ckpt")
    square = NUMBERS.reshape(4, 6)
    expected = dict(
        whole=square, transposed=square.T, part=NUMBERS[[[7, 9, 11], [13, 15, 17]]], empty=np.zeros((0, 3)),
        expanded=NUMBERS[[[4, 5]] * 3], count=7, parameter=NUMBERS[[[7, 9, 11], [13, 15, 17]]],
    )  # fmt: skip
    assert list(read) == list(state)
    for key, value in expected.items():
        np.testing.assert_array_equal(read[key], value)
        assert read[key].flags.c_contiguous and read[key].shape == np.shape(value)
    assert read["count"].dtype == np.int64


@FORMATS
@pytest.mark.parametrize(
    "kind, dtype",
    [("DoubleStorage", "f8"), ("HalfStorage", "f2"), ("BFloat16Storage", ml_dtypes.bfloat16),
     ("IntStorage", "i4"), ("ShortStorage", "i2"), ("CharStorage", "i1"), ("ByteStorage", "u1"),
     ("BoolStorage", "?")],
)  # fmt: skip
def test_number_types(tmp_path, write, kind, dtype):
    array = np.array([0, 1, 1, 0]).astype(dtype)
    storage = Storage(kind, "0", array)
    write(tmp_path / "x.pth", {"a": tensor(storage, (2, 2), (2, 1))}, [storage])
    read = read_torch(tmp_path / "x.pth")["a"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array.reshape(2, 2))


@FORMATS
def test_foreign_classes_become_placeholders(tmp_path, write):
    storage = Storage("FloatStorage", "0", NUMBERS)
    callback = Call(Global("pytorch_lightning.callbacks", "ModelCheckpoint"), 3, state={"best": 1.0})
    # An object that is called after it was made, as functools.partial or getattr would be.
    called = Call(Global("builtins", "getattr"), Global("torch", "float32"), "type")
    weight = tensor(storage, (24,), (1,))
    whole = {"state_dict": {"w": weight}, "callbacks": {Global("a", "B"): callback}, "x": called, "step": 5,
             "list": [weight, "text", (1, 2.0)]}  # fmt: skip
    write(tmp_path / "x.ckpt", whole, [storage])
    assert list(read_torch(tmp_path / "x.ckpt")) == ["w"]
    read = read_torch_object(tmp_path / "x.ckpt")
    assert read["step"] == 5 and read["list"][1:] == ["text", (1, 2.0)]
    np.testing.assert_array_equal(read["list"][0], NUMBERS)
    ((kind, value),) = read["callbacks"].items()
    assert issubclass(kind, Placeholder)
    assert isinstance(value, Placeholder) and isinstance(read["x"], Placeholder)


@FORMATS
@pytest.mark.parametrize("module, name", [("os", "system"), ("posix", "system"), ("builtins", "eval"),
                                          ("builtins", "exec"), ("subprocess", "Popen")])  # fmt: skip
def test_nothing_in_the_file_runs(tmp_path, write, module, name):
    storage, mark = Storage("FloatStorage", "0", NUMBERS), tmp_path / "ran"
    command = f"touch {mark}" if name in ("system", "Popen") else f"open({str(mark)!r}, 'w')"
    attack = Call(Global(module, name), command)
    write(tmp_path / "x.ckpt", {"attack": attack, "w": tensor(storage, (24,), (1,))}, [storage])
    assert list(read_torch(tmp_path / "x.ckpt")) == ["w"]
    assert not mark.exists()


def test_the_attack_of_the_test_above_would_run_with_pickle(tmp_path):
    mark = tmp_path / "ran"
    pickle.loads(pickled(Call(Global(os.name, "system"), f"touch {mark}")))
    assert mark.exists()


@FORMATS
def test_damage_is_named(tmp_path, write):
    storage, path = Storage("FloatStorage", "0", NUMBERS), tmp_path / "x.ckpt"
    write(path, {"w": tensor(storage, (24,), (1,))}, [storage])
    data = path.read_bytes()
    for length in (0, 3, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"x\.ckpt cannot be read as a PyTorch file.*download it again"):
            read_torch(path)


@FORMATS
@pytest.mark.parametrize("shape, strides, offset", [((25,), (1,), 0), ((4, 6), (7, 1), 0), ((1,), (1,), 24),
                                                    ((2,), (-1,), 1), ((1,), (1,), -1)])  # fmt: skip
def test_tensors_outside_their_storage_are_refused(tmp_path, write, shape, strides, offset):
    storage = Storage("FloatStorage", "0", NUMBERS)
    write(tmp_path / "x.ckpt", {"w": tensor(storage, shape, strides, offset)}, [storage])
    with pytest.raises(ValueError, match="larger than its storage of 24"):
        read_torch(tmp_path / "x.ckpt")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"\x89PNG and so on")
    with pytest.raises(ValueError, match="cannot be read as a PyTorch file"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/config.json", "{}")
    with pytest.raises(ValueError, match=r"without data\.pkl"):
        read_torch(path)
    write_zip(path, {"epoch": 1, "model": {}}, [])
    with pytest.raises(ValueError, match=r"no tensors.*\['epoch', 'model'\]"):
        read_torch(path)
