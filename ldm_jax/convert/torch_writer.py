"""Writes PyTorch's zip format (.ckpt, .pth) from numpy without torch.

The file is what `torch.save({"state_dict": {...}, "global_step": n})` makes: a zip of "data.pkl" and one entry
per tensor. The pickle is written opcode by opcode, because Python's own pickler would import torch to name its
functions. It names only what `torch.load(weights_only=True)` allows.
"""

import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ldm_jax.convert.torch_pickle import STORAGES

KINDS = {np.dtype(dtype): kind for kind, dtype in STORAGES.items()}
ALIGNMENT = 64  # torch maps storages that begin at such multiples
CHUNK = 2**24
Thunk = Callable[[], np.ndarray]


def write_torch(path: str | Path, tensors: Mapping[str, np.ndarray | Thunk], step: int | None = None) -> None:
    """{key: array, or a function that gives it} -> a checkpoint; visible under `path` only when complete.

    `step` becomes Lightning's "global_step". Raises ValueError for a number type that torch has not.
    """
    path, temporary = Path(path), Path(f"{path}.tmp")
    specs: list[tuple[str, np.dtype, tuple[int, ...]]] = []
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for i, (key, value) in enumerate(tensors.items()):
                array = np.asarray(value() if callable(value) else value, order="C")
                if array.dtype not in KINDS:
                    raise ValueError(f"{key}: PyTorch has no type for numbers of {array.dtype}")
                specs.append((key, array.dtype, array.shape))
                _store(archive, f"archive/data/{i}", array)
            archive.writestr("archive/data.pkl", _pickled(specs, step))
            archive.writestr("archive/byteorder", sys.byteorder)
            archive.writestr("archive/version", "3\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _store(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """One storage, aligned by a field of padding in its header, in pieces."""
    info = zipfile.ZipInfo(name)
    large = array.nbytes >= zipfile.ZIP64_LIMIT
    begin = archive.fp.tell() + 30 + len(name) + 4 + (20 if large else 0)
    padding = -begin % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    data = memoryview(array.reshape(-1).view(np.uint8))
    info.file_size = len(data)
    with archive.open(info, "w", force_zip64=large) as entry:
        for start in range(0, len(data), CHUNK):
            entry.write(data[start : start + CHUNK])


def _pickled(specs: list[tuple[str, np.dtype, tuple[int, ...]]], step: int | None) -> bytes:
    state = [_ORDERED_DICT, pickle.MARK]
    for i, (key, dtype, shape) in enumerate(specs):
        state += [_text(key), _tensor(str(i), dtype, shape)]
    state = b"".join(state) + pickle.SETITEMS
    items = _text("state_dict") + state
    if step is not None:
        items += _text("global_step") + _integer(step)
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


_ORDERED_DICT = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(8, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _tensor(storage: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    count = int(np.prod(shape, dtype=np.int64))
    strides = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
    where = _tuple(_text("storage"), _name("torch", KINDS[dtype]), _text(storage), _text("cpu"), _integer(count))
    arguments = _tuple(
        where + pickle.BINPERSID,
        _integer(0),
        _tuple(*map(_integer, shape)),
        _tuple(*map(_integer, strides)),
        pickle.NEWFALSE,
        _ORDERED_DICT,
    )
    return _name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE
