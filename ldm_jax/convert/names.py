"""One mechanical rule between our parameter trees and PyTorch state dicts, in both directions.

Names: join the path with "."; every "_<digits>" before "_" or the end of a component becomes ".<digits>",
and a "_" after those digits "."; the last component kernel, scale or embedding becomes weight, mean and var
become running_mean and running_var. Exceptions: the middle blocks of the first stages, whose names hold
"_1" and "_2" in the original too (mid_block_1 <-> mid.block_1), and x_embedder_proj <-> x_embedder.proj.
    input_blocks_4_0/in_layers_0/scale -> input_blocks.4.0.in_layers.0.weight
    down_0_block_1/conv1/kernel        -> down.0.block.1.conv1.weight
Arrays: [in,out] <-> [out,in], HWIO <-> OIHW, [k,in,out] <-> [out,in,k]; all others are the same.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax import tree
from ldm_jax.errors import UsageError

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
RENAMED = {f"mid_{part}": f"mid.{part}" for part in ("block_1", "attn_1", "block_2")}
RENAMED["x_embedder_proj"] = "x_embedder.proj"
COLLECTIONS = ("params", "batch_stats")
# Kernel axes in torch's order, by number of axes.
TORCH_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
# A counter of torch's BatchNorm that nothing reads.
IGNORED = "num_batches_tracked"
SHOWN = 20  # lines of each list in an error


def torch_key(path: str) -> str:
    """The state-dict key of a leaf "a/b/kernel". A leading collection name (params/...) is dropped."""
    parts = path.split("/")
    if parts[0] in COLLECTIONS:
        parts = parts[1:]
    *modules, leaf = parts
    return ".".join([*map(_torch_module, modules), LEAVES.get(leaf, leaf)])


def _torch_module(name: str) -> str:
    if name in RENAMED:
        return RENAMED[name]
    dotted = re.sub(r"_(\d+)(?=_|$)", r".\1", name)
    return re.sub(r"(\.\d+)_", r"\1.", dotted)


def _is_kernel(path: str) -> bool:
    return path.rsplit("/", 1)[-1] == "kernel"


def to_torch_array(path: str, array: np.ndarray, torch_shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Our array in torch's layout. `torch_shape` restores axes of size 1 that ours lacks or has too many of.

    Raises ValueError when the shapes differ in more than axes of size 1.
    """
    array = np.asarray(array)
    if _is_kernel(path):
        array = array.transpose(TORCH_AXES[array.ndim])
    return array if torch_shape is None else _reshape(array, tuple(torch_shape))


def from_torch_array(path: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Torch's array in our layout and `shape`. Raises ValueError as `to_torch_array` does."""
    array = np.asarray(array)
    if not _is_kernel(path):
        return _reshape(array, tuple(shape))
    axes = TORCH_AXES[len(shape)]
    array = _reshape(array, tuple(shape[i] for i in axes))
    return array.transpose(np.argsort(axes))


def _reshape(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Adds or drops axes of size 1 only."""
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(f"shape {array.shape}, expected {shape}")
    return array.reshape(shape)


def from_torch(
    state: Mapping[str, np.ndarray], template: tree.Tree, key_of: Callable[[str], str] = torch_key
) -> tree.Tree:
    """The tree of `template` (nested dict of arrays or ShapeDtypeStructs) filled from a state dict.

    The template may be a params tree or {"params": ..., "batch_stats": ...}; `key_of` gives the key of a leaf's
    path. Arrays are views of the state's where layout and type allow. Every leaf must be filled and every key
    used (except BatchNorm's counters), else UsageError with what is missing, what is left over and which shapes
    differ, of each kind the first `SHOWN`.
    """
    leaves, wrong = {}, []
    keys = {path: key_of(path) for path in tree.flatten(template)}
    for path, leaf in tree.flatten(template).items():
        if keys[path] in state:
            try:
                array = from_torch_array(path, state[keys[path]], leaf.shape)
                leaves[path] = array.astype(leaf.dtype, copy=False)
            except ValueError as error:
                wrong.append(f"{keys[path]}: {error} (in torch's layout)")
    missing = sorted(set(keys.values()) - set(state))
    unexpected = sorted(key for key in set(state) - set(keys.values()) if not key.endswith(IGNORED))
    if missing or unexpected or wrong:
        raise UsageError(
            "the state dict does not fit; is it of another architecture?\n"
            + "\n".join(
                _listed(title, lines)
                for title, lines in (("missing", missing), ("unexpected", unexpected), ("other shape", wrong))
                if lines
            )
        )
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[path] for path in keys])


def _listed(title: str, lines: list[str]) -> str:
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"{title} ({len(lines)}):", *(f"  {line}" for line in lines[:SHOWN]), *more])


def to_torch(params: tree.Tree, reference_shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Any]:
    """State dict (numpy) of a params tree, the inverse of `from_torch`.

    `reference_shapes`: shapes by key, for models whose torch kernels have axes of size 1 that ours lack.
    """
    shapes = reference_shapes or {}
    state = {}
    for path, leaf in tree.flatten(params).items():
        key = torch_key(path)
        try:
            state[key] = to_torch_array(path, leaf, shapes.get(key))
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from error
    return state


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of our leaf in torch's layout."""
    return tuple(shape[i] for i in TORCH_AXES[len(shape)]) if _is_kernel(path) else tuple(shape)
