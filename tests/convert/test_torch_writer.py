"""Files that we write come back, and hold what torch's own reader looks for."""

import pickletools
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ldm_jax.convert.torch_pickle import STORAGES
from ldm_jax.convert.torch_reader import read_torch_checkpoint
from ldm_jax.convert.torch_writer import ALIGNMENT, write_torch


def tensors():
    some = {kind: np.arange(6).reshape(2, 3).astype(dtype) for kind, dtype in STORAGES.items()}
    odd = {"scalar": np.float32(3), "empty": np.zeros((0, 4), np.float32), "turned": np.arange(6.0).reshape(2, 3).T}
    return some | odd | {"called": lambda: np.full(3, 2, np.float16)}


def test_there_and_back(tmp_path):
    path = tmp_path / "x.ckpt"
    write_torch(path, tensors(), step=2**33)
    found, step = read_torch_checkpoint(path)
    assert step == 2**33 and list(found) == list(tensors())
    for key, value in tensors().items():
        value = np.asarray(value() if callable(value) else value)
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert np.array_equal(found[key], value)
    assert found["BFloat16Storage"].dtype == ml_dtypes.bfloat16
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_without_a_step(tmp_path):
    write_torch(tmp_path / "x.pth", {"a": np.ones(2, np.float32)})
    assert read_torch_checkpoint(tmp_path / "x.pth")[1] is None


def test_the_pickle_names_only_what_weights_only_allows(tmp_path):
    write_torch(tmp_path / "x.ckpt", tensors(), step=1)
    with zipfile.ZipFile(tmp_path / "x.ckpt") as archive:
        data = archive.read("archive/data.pkl")
        assert archive.testzip() is None and archive.read("archive/version") == b"3\n"
        entries = [i for i in archive.infolist() if "/data/" in i.filename]
    named = {argument for opcode, argument, _ in pickletools.genops(data) if opcode.name == "GLOBAL"}
    storages = {f"torch {kind}" for kind in STORAGES}
    assert named == {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | storages
    bytes_ = (tmp_path / "x.ckpt").read_bytes()
    for info in entries:
        extra = int.from_bytes(bytes_[info.header_offset + 28 : info.header_offset + 30], "little")
        assert (info.header_offset + 30 + len(info.filename) + extra) % ALIGNMENT == 0


def test_other_types_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="a: PyTorch has no type for numbers of complex128"):
        write_torch(tmp_path / "x.ckpt", {"a": np.ones(2, complex)})
    assert not list(tmp_path.iterdir())
