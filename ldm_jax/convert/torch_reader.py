"""Reads PyTorch's .ckpt and .pth files into numpy without torch, and without running anything in them.

A .ckpt is a pickle, which can name any function to be called on loading. Here the only names with a meaning
are tensors, their storages and OrderedDict; every other name becomes an inert `Placeholder`, so that a
Lightning checkpoint that holds objects of unknown classes can be read and nothing of it is called.

Both formats: the zip of torch 1.6 and later ("data.pkl" and one file per storage), and the older one (five
pickles, then the storages, each after its length).
"""

import mmap
import pickle
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ldm_jax.errors import UsageError

OLD_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Placeholder:
    """Stands for an object whose class is not read; accepts whatever a pickle does to it and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __new__(cls, *args: Any, **kwargs: Any):
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype


@dataclass(frozen=True)
class _Tensor:
    """A tensor before its numbers are read: parts of a checkpoint that nobody asks for never are."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor as a contiguous array, from the numbers [N] of its storage."""
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        if 0 in self.shape:
            return np.zeros(self.shape, numbers.dtype)
        if self.offset < 0 or min(self.strides, default=0) < 0 or last >= numbers.size:
            raise ValueError(
                f"a tensor of shape {self.shape}, strides {self.strides} and offset {self.offset} is "
                f"larger than its storage of {numbers.size}"
            )
        strides = [s * numbers.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)
        # order="C" keeps scalars scalars, which ascontiguousarray would not.
        return np.asarray(view, order="C")


def _rebuild_tensor(storage, offset, shape, strides, *unused) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor of shape {tuple(shape)} has no storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data, *unused) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, `_Tensor`s and `Placeholder`s. Remembers the storages that it meets."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGES:
            return type(name, (Placeholder,), {"dtype": np.dtype(STORAGES[name])})
        known = {
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("collections", "OrderedDict"): OrderedDict,
        }
        return known.get((module, name)) or type(name, (Placeholder,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not hasattr(pid[1], "dtype"):
            raise ValueError(f"unknown kind of storage: {str(pid)[:200]}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage that is a view of another one is not supported")
        key = str(pid[2])
        return self.storages.setdefault(key, _Storage(key, pid[1].dtype))


def read_torch_object(path: str | Path) -> Any:
    """The whole object in the file: containers, numbers, strings, numpy arrays for tensors, `Placeholder`s.

    Raises UsageError when the file is not PyTorch's, or is truncated or damaged.
    """
    return _guarded(path, lambda root, numbers: _materialise(root, numbers))


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict: {key: array}, from the entry "state_dict" when there is one.

    Values that are no tensors are left out, and of a whole checkpoint only the state dict is read. bfloat16
    tensors have the dtype of ml_dtypes. The arrays are read-only views of the mapped file where its format
    allows, so a large file takes no memory of its own. Raises UsageError when the file is not PyTorch's, is
    damaged or holds no tensors at that place.
    """
    return read_torch_checkpoint(path)[0]


def read_torch_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], int | None]:
    """What `read_torch` gives, and Lightning's "global_step" (None where the file has none)."""

    def pick(root: Any, numbers: Callable) -> tuple[dict[str, np.ndarray], int | None]:
        state = root.get("state_dict", root) if isinstance(root, dict) else None
        items = state.items() if isinstance(state, dict) else ()
        tensors = {k: v for k, v in items if isinstance(v, _Tensor)}
        if not tensors:
            found = sorted(map(str, root)) if isinstance(root, dict) else type(root).__name__
            raise ValueError(f'no tensors at the top or in "state_dict"; the file holds {found}')
        step = root.get("global_step")
        step = step if type(step) is int and step >= 0 else None
        return {str(k): v.read(numbers(v.storage)) for k, v in tensors.items()}, step

    return _guarded(path, pick)


def _guarded(path: str | Path, use: Callable) -> Any:
    """use(root object, storage -> numbers), with every way a damaged file shows itself as UsageError."""
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    return use(*_open_zip(archive, _mapped(file)))
            file.seek(0)
            return use(*_open_old(file, _mapped(file)))
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, IndexError, TypeError,
            AttributeError, ValueError, OverflowError) as error:  # fmt: skip
        raise UsageError(
            f"{path} cannot be read as a PyTorch file: {type(error).__name__}: {error}. If it should be one, "
            "it is damaged or cut short: compare its size or checksum and download it again"
        ) from error


def _mapped(file: BinaryIO) -> memoryview:
    """The file's bytes, read from disk only where they are looked at; stays valid when the file is closed."""
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _entry(archive: zipfile.ZipFile, name: str, mapped: memoryview) -> memoryview | bytes:
    """The bytes of a zip entry, checksum compared; a view of the file unless it is compressed."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return archive.read(name)
    header = bytes(mapped[info.header_offset : info.header_offset + 30])
    start = info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    data = mapped[start : start + info.file_size]
    if header[:4] != b"PK\x03\x04" or len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"the entry {name} is damaged (checksum)")
    return data


def _open_zip(archive: zipfile.ZipFile, mapped: memoryview) -> tuple[Any, Callable]:
    names = archive.namelist()
    index = next((n for n in names if n == "data.pkl" or n.endswith("/data.pkl")), None)
    if index is None:
        raise ValueError("a zip file without data.pkl")
    folder = index.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in names and archive.read(order).strip().decode() != sys.byteorder:
        raise ValueError(f"written on a machine with the other byte order than this one's {sys.byteorder}")
    with archive.open(index) as file:
        root = _Unpickler(file).load()
    cache: dict[str, np.ndarray] = {}

    def numbers(storage: _Storage) -> np.ndarray:
        if storage.key not in cache:
            data = _entry(archive, f"{folder}data/{storage.key}", mapped)
            cache[storage.key] = np.frombuffer(data, storage.dtype)
        return cache[storage.key]

    return root, numbers


def _open_old(file: BinaryIO, mapped: memoryview) -> tuple[Any, Callable]:
    if _Unpickler(file).load() != OLD_MAGIC:
        raise ValueError("neither a zip file nor PyTorch's older format")
    for _ in ("version", "sizes on the machine that wrote it"):
        _Unpickler(file).load()
    reader = _Unpickler(file)
    root = reader.load()
    arrays = {}
    for key in _Unpickler(file).load():
        storage = reader.storages[str(key)]
        count = int.from_bytes(file.read(8), "little")
        start = file.tell()
        data = mapped[start : start + count * storage.dtype.itemsize]
        if len(data) != count * storage.dtype.itemsize:
            raise ValueError(f"ends within the storage {key}")
        file.seek(start + len(data))
        arrays[storage.key] = np.frombuffer(data, storage.dtype)
    return root, lambda storage: arrays[storage.key]


def _materialise(value: Any, numbers: Callable) -> Any:
    if isinstance(value, _Tensor):
        return value.read(numbers(value.storage))
    if isinstance(value, dict):
        return {k: _materialise(v, numbers) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_materialise(v, numbers) for v in value)
    return value
