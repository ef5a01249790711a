"""The safetensors format: 8 bytes length, a JSON header, the numbers. Read by mapping the file, written one
tensor at a time, so that models larger than half the memory pass through; bfloat16 included.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.errors import UsageError
from ldm_jax.files import mapped, unreadable

# Bytes of a header, at most: of 80,000 tensors. The reference library reads 100 MB; Python may need gigabytes for that.
HEADER = 2**23
TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(dtype): name for name, dtype in TYPES.items()}
Spec = tuple[np.dtype, tuple[int, ...]]  # type and shape of a tensor


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({key: read-only view of the mapped file}, metadata).

    UsageError for a damaged or cut file. What the reference library refuses is refused here, too.
    """
    try:
        data = mapped(path)
        begin = 8 + int.from_bytes(data[:8], "little")
        if begin > len(data) or begin > HEADER:
            raise ValueError(f"a header of {begin - 8} bytes in a file of {len(data)}; at most {HEADER} are read")
        hooks = dict(object_pairs_hook=_object, parse_int=_natural, parse_constant=_no_constant)
        header = json.loads(str(data[8:begin], "utf-8"), **hooks)
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        metadata = header.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not texts")
        found = {key: _view(data[begin:], key, entry) for key, entry in header.items()}
        _check_order([header[key]["data_offsets"] for key in found], len(data) - begin)
        return found, metadata
    except UsageError:
        raise
    # json, numpy and the operating system each have their own exceptions for damage.
    except Exception as error:
        raise unreadable(path, "a safetensors file", error) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    for key in found:
        key.encode()  # UnicodeEncodeError for half of a surrogate pair
    return found


def _natural(text: str) -> int:
    if text.startswith("-"):
        raise ValueError(f"{text[:20]} is less than 0")
    return int(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_size(value: Any) -> bool:
    return type(value) is int and value < 2**63


def _view(data: memoryview, key: str, entry: Any) -> np.ndarray:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{key[:100]} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise ValueError(f"{key[:100]} has numbers of the unknown type {str(dtype)[:20]}")
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise ValueError(f"{key[:100]}: the shape and the two offsets are not lists")
    if not all(map(_is_size, shape + offsets)):
        raise ValueError(f"{key[:100]}: the shape and the offsets must be integers from 0 on")
    start, end = offsets
    size = math.prod(shape) * np.dtype(TYPES[dtype]).itemsize
    if not start <= end <= len(data) or end - start != size:
        raise ValueError(f"{key[:100]}: bytes {start} to {end} of {len(data)} for {dtype} {shape}")
    return np.frombuffer(data[start:end], TYPES[dtype]).reshape(shape)


def _check_order(offsets: list[list[int]], size: int) -> None:
    """ValueError unless the tensors follow each other without holes, and fill all `size` bytes."""
    at = 0
    for start, end in sorted(offsets):
        if start != at:
            raise ValueError(f"a tensor begins at byte {start}, but those before it end at {at}")
        at = end
    if at != size:
        raise ValueError(f"tensors of {at} bytes, but {size} follow the header")


def write_safetensors(
    path: str | Path, tensors: Mapping[str, tuple[Spec, Callable[[], np.ndarray]]], metadata: Mapping[str, str]
) -> None:
    """{key: ((type, shape), function that gives the array)}; visible under `path` only when complete.

    Raises ValueError for a number type that the format has not.
    """
    path, temporary = Path(path), Path(f"{path}.tmp")
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for key, ((dtype, shape), _) in tensors.items():
        dtype = np.dtype(dtype)
        if dtype not in NAMES:
            raise ValueError(f"{key}: safetensors has no type for numbers of {dtype}")
        end = offset + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key, ((dtype, shape), give) in tensors.items():
                array = np.asarray(give(), order="C")
                if array.dtype != dtype or array.shape != tuple(shape):
                    raise ValueError(f"{key}: {array.dtype} {array.shape}, announced as {dtype} {shape}")
                file.write(memoryview(array.reshape(-1).view(np.uint8)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
