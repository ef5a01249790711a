"""The safetensors format: 8 bytes length, a JSON header, the numbers. Read by mapping the file, written one
tensor at a time, so that models larger than half the memory pass through; bfloat16 included.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from ldm_jax.errors import UsageError

TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(dtype): name for name, dtype in TYPES.items()}
Spec = tuple[np.dtype, tuple[int, ...]]  # type and shape of a tensor


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({key: read-only view of the mapped file}, metadata). Raises UsageError for a damaged or cut file."""
    try:
        with open(path, "rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        begin = 8 + int.from_bytes(mapped[:8], "little")
        if begin > len(mapped):
            raise ValueError(f"a header of {begin - 8} bytes in a file of {len(mapped)}")
        header = json.loads(bytes(mapped[8:begin]))
        metadata = header.pop("__metadata__", {})
        return {key: _view(mapped[begin:], key, **entry) for key, entry in header.items()}, metadata
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} cannot be read as a safetensors file: {type(error).__name__}: {error}. If it should be one, "
            "it is damaged or cut short: compare its size or checksum and download it again"
        ) from error


def _view(data: memoryview, key: str, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    if dtype not in TYPES:
        raise ValueError(f"{key} has numbers of the unknown type {dtype}")
    start, end = data_offsets
    size = math.prod(shape) * np.dtype(TYPES[dtype]).itemsize
    if not 0 <= start <= end <= len(data) or end - start != size:
        raise ValueError(f"{key}: bytes {start} to {end} of {len(data)} for {dtype} {shape}")
    return np.frombuffer(data[start:end], TYPES[dtype]).reshape(shape)


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
