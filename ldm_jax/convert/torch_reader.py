"""Reads PyTorch's .ckpt and .pth files into numpy without torch, and without running anything in them.

A .ckpt is a pickle, which can name any function to be called on loading. `torch_pickle` reads it and calls nothing: a
Lightning checkpoint that holds objects of unknown classes can be read, and these are placeholders.

Both formats: the zip of torch 1.6 and later ("data.pkl" and one file per storage), and the older one (five
pickles, then the storages, each after its length). A file can ask for no more memory than about twice its size.
"""

import math
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.convert.torch_pickle import Storage, Tensor, Unpickler
from ldm_jax.errors import Missing, UsageError
from ldm_jax.files import Window, mapped, unreadable

OLD_MAGIC = 0x1950A86A20F9469CFC6C
PICKLES = 2**25  # bytes of pickles in a file, at most
SPARE = 2**26  # bytes that a file may take beyond twice its size
DEPTH = 100  # of containers in containers, in a whole object
_ZIP = b"PK\x03\x04"


def read_torch_object(path: str | Path) -> Any:
    """The whole object in the file: containers, numbers, strings, numpy arrays for tensors, `Placeholder`s.

    Raises UsageError when the file is not PyTorch's, or is truncated or damaged.
    """
    return _guarded(path, lambda root, read: _materialise(root, read, {}, DEPTH))


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

    def pick(root: Any, read: Callable) -> tuple[dict[str, np.ndarray], int | None]:
        state = root.get("state_dict", root) if isinstance(root, dict) else None
        items = state.items() if isinstance(state, dict) else ()
        tensors = {str(k): v for k, v in items if isinstance(k, str | int) and isinstance(v, Tensor)}
        if not tensors:
            keys = sorted(key[:40] for key in root if isinstance(key, str))[:20] if isinstance(root, dict) else None
            found = type(root).__name__ if keys is None else keys
            raise ValueError(f'no tensors at the top or in "state_dict"; the file holds {found}')
        step = root.get("global_step")
        step = step if type(step) is int and 0 <= step < 2**63 else None
        return {key: read(tensor) for key, tensor in tensors.items()}, step

    return _guarded(path, pick)


def _guarded(path: str | Path, use: Callable) -> Any:
    """use(root object, tensor -> array), with every way a damaged file shows itself as UsageError."""
    try:
        data = mapped(path)
        budget = _Budget(2 * len(data) + SPARE)
        root, bytes_of = _open_zip(data, budget) if data[:4] == _ZIP else _open_old(data)
        return use(root, _reader(bytes_of, budget))
    except Missing:
        raise
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    # Damage reaches many places of pickletools, zipfile and numpy, and each has its own exceptions.
    except Exception as error:
        raise unreadable(path, "a PyTorch file", error) from error


class _Budget:
    """Bytes that a file may still take, so that a small file does not fill the memory."""

    def __init__(self, left: int):
        self.left = left

    def spend(self, size: int) -> None:
        if size > self.left:
            raise ValueError(f"its numbers take {size} bytes where the size of the file leaves {self.left}")
        self.left -= size


def _reader(bytes_of: Callable[[Storage], memoryview | bytes], budget: _Budget) -> Callable[[Tensor], np.ndarray]:
    """tensor -> contiguous array. Storages are read when they are first asked for."""
    storages: dict[str, np.ndarray] = {}

    def read(tensor: Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = np.frombuffer(bytes_of(storage), storage.dtype)
        return _array(tensor, storages[storage.key], budget)

    return read


def _array(tensor: Tensor, numbers: np.ndarray, budget: _Budget) -> np.ndarray:
    """The tensor as a contiguous array, from the numbers [N] of its storage. A view of them where it can be."""
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if 0 in shape and min(shape) == 0:
        return np.zeros(shape, numbers.dtype)
    if min((offset, *shape, *strides)) < 0 or last >= numbers.size:
        raise ValueError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} is larger than its storage of "
            f"{numbers.size}"
        )
    size = math.prod(shape)
    dense = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if all(n == 1 or s == d for n, s, d in zip(shape, strides, dense)):
        return numbers[offset : offset + size].reshape(shape)
    budget.spend(size * numbers.itemsize)
    in_bytes = [s * numbers.itemsize for s in strides]
    view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, in_bytes, writeable=False)
    return np.ascontiguousarray(view)


def _open_zip(data: memoryview, budget: _Budget) -> tuple[Any, Callable]:
    with zipfile.ZipFile(Window(data)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
    index = next((n for n in entries if n == "data.pkl" or n.endswith("/data.pkl")), None)
    if index is None:
        raise ValueError("a zip file without data.pkl")

    def bytes_of(name: str) -> memoryview | bytes:
        if name not in entries:
            raise ValueError(f"the entry {name[:100]} is missing")
        return _entry(data, entries[name], budget)

    folder = index.removesuffix("data.pkl")
    if f"{folder}byteorder" in entries:
        _check_order(bytes(bytes_of(f"{folder}byteorder")).strip() == b"little")
    if entries[index].file_size > PICKLES:
        raise ValueError(f"a data.pkl of {entries[index].file_size} bytes; at most {PICKLES} are read")
    root = Unpickler(Window(bytes_of(index))).load()
    return root, lambda storage: bytes_of(f"{folder}data/{storage.key}")


def _entry(data: memoryview, info: zipfile.ZipInfo, budget: _Budget) -> memoryview | bytes:
    """The bytes of a zip entry, checksum compared; a view of the file unless it is compressed."""
    header = bytes(data[info.header_offset : info.header_offset + 30])
    start = info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    found: memoryview | bytes = data[start : start + info.compress_size]
    damaged = zipfile.BadZipFile(f"the entry {info.filename[:100]} is damaged (checksum)")
    if header[:4] != _ZIP or len(found) != info.compress_size:
        raise damaged
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is encrypted, or compressed in a way that PyTorch does not use")
    budget.spend(info.file_size)  # entries that lie in one another are read more than once
    if info.compress_type == zipfile.ZIP_DEFLATED:
        found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, info.file_size + 1)
    if len(found) != info.file_size or zlib.crc32(found) != info.CRC:
        raise damaged
    return found


def _check_order(little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise UsageError(
            f"written on a machine with the other byte order than this one's {sys.byteorder}: load it with PyTorch "
            "there, and save it as .safetensors"
        )


def _open_old(data: memoryview) -> tuple[Any, Callable]:
    file = Window(data[:PICKLES])
    if data[:1] != pickle.PROTO or Unpickler(file).load() != OLD_MAGIC:
        raise ValueError("neither a zip file nor PyTorch's older format")
    Unpickler(file).load()  # the version
    machine = Unpickler(file).load()
    _check_order(not isinstance(machine, dict) or machine.get("little_endian", True) is True)
    reader = Unpickler(file)
    root, keys = reader.load(), Unpickler(file).load()
    if not isinstance(keys, list):
        raise ValueError("no list of storages")
    found, at = {}, file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in reader.storages:
            raise ValueError("a storage that no tensor has")
        storage = reader.storages[key]
        size = int.from_bytes(data[at : at + 8], "little") * storage.dtype.itemsize
        found[storage.key] = data[at + 8 : at + 8 + size]
        if len(found[storage.key]) != size:
            raise ValueError(f"ends within the storage {key[:100]}")
        at += 8 + size
    return root, lambda storage: found[storage.key]


def _materialise(value: Any, read: Callable, done: dict[int, Any], depth: int) -> Any:
    """The object with arrays for tensors. done: what was made of the containers, by their id."""
    if isinstance(value, Tensor):
        return read(value)
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)]
    if depth == 0:
        raise ValueError(f"containers in containers, more than {DEPTH} deep")
    if isinstance(value, dict):
        made: Any = {}
        done[id(value)] = made
        made |= {key: _materialise(item, read, done, depth - 1) for key, item in value.items()}
        return made
    made = []
    done[id(value)] = made
    made += [_materialise(item, read, done, depth - 1) for item in value]
    if isinstance(value, tuple):
        done[id(value)] = made = tuple(made)
    return made
