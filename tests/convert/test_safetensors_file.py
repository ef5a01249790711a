"""Our reader and writer against the library's, and damaged files."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ldm_jax.convert.safetensors_file import TYPES, read_safetensors, write_safetensors


def given(arrays):
    return {key: ((a.dtype, a.shape), lambda a=a: a) for key, a in arrays.items()}


def arrays():
    return {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in TYPES.items()} | {"s": np.float32(3)}


def test_there_and_back(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", given(arrays()), {"a": "b"})
    found, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"a": "b"} and found["BF16"].dtype == ml_dtypes.bfloat16
    for key, array in arrays().items():
        assert found[key].dtype == array.dtype and np.array_equal(found[key], array)


def test_the_library_agrees(tmp_path):
    plain = {k: np.ascontiguousarray(v) for k, v in arrays().items() if k != "BF16"}
    write_safetensors(tmp_path / "ours.safetensors", given(plain), {})
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    safetensors.numpy.save_file(plain, tmp_path / "theirs.safetensors")
    ours = read_safetensors(tmp_path / "theirs.safetensors")[0]
    for key, array in plain.items():
        assert np.array_equal(theirs[key], array) and np.array_equal(ours[key], array)
        assert theirs[key].dtype == ours[key].dtype == array.dtype


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_damage_is_named(tmp_path, size):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, given(arrays()), {})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read as a safetensors file.*download it again"):
        read_safetensors(path)


def test_an_array_that_is_not_as_announced_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="announced as"):
        write_safetensors(tmp_path / "x", {"a": ((np.dtype(np.float32), (2,)), lambda: np.ones(3))}, {})
    assert not list(tmp_path.iterdir())
