"""Vectors that come with the data: CLIP vectors of retrieved images (arXiv 2204.11824)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldm_jax.conditions.base import Asked, Batch, Cond, Condition, ConditionNetwork, Encode, Option
from ldm_jax.data.fields import Field, Placed
from ldm_jax.data.metadata import read_npy
from ldm_jax.errors import DataError, RequestError
from ldm_jax.files import local


def section(number: int, dim: int, drop_prob: float = 0.1) -> dict:
    """Up to `number` vectors of `dim` numbers."""
    return dict(kind="vectors", number=number, dim=dim, drop_prob=drop_prob)


class Vectors(ConditionNetwork):
    """batch["vectors"] [B,k,D] as the context; null: zeros."""

    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        return Cond(context=batch["vectors"])

    def null(self, batch: Batch) -> Batch:
        return {"vectors": jnp.zeros_like(batch["vectors"])}


@dataclass(frozen=True)
class VectorsField(Field):
    """ "vectors" float32 [number,dim], the first of the example's "vectors"; where it has fewer, zeros follow."""

    number: int
    dim: int
    reads_image = False

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        given = np.asarray(placed.get("vectors"), np.float32)
        if given.shape[-1] != self.dim:
            raise DataError(
                f"the vectors of {placed.example.get('name', '')} have {given.shape[-1]} numbers, but "
                f"config.conditioner.dim={self.dim}"
            )
        given = given.reshape(-1, self.dim)[: self.number]
        return {"vectors": np.pad(given, ((0, self.number - len(given)), (0, 0)))}


def requests(given: Any, number: int, dim: int) -> list[Asked]:
    """given: a .npy file or an array, [dim], [k,dim] or [N,k,dim] with k <= number; missing vectors are zeros."""
    path = local(given, "vectors") if isinstance(given, str | Path) else None
    name = path.stem if path else ""
    try:
        array = read_npy(path) if path else np.asarray(given)
        array = np.asarray(array).astype(np.float32)
    except (ValueError, TypeError) as error:
        raise RequestError(f"vectors={given} is not a .npy file of numbers: {error}") from None
    array = array.reshape((1,) * max(3 - array.ndim, 0) + array.shape)
    if array.ndim != 3 or array.shape[2] != dim or not 1 <= array.shape[1] <= number:
        raise RequestError(f"vectors: {array.shape}; the model takes up to {number} vectors of {dim} numbers")
    if not np.isfinite(array).all():
        raise RequestError("vectors: not all numbers are finite")
    array = np.pad(array, ((0, 0), (0, number - array.shape[1]), (0, 0)))
    return [Asked(f"{name} {i}".strip(), {"vectors": a}) for i, a in enumerate(array)]


class VectorsCondition(Condition):
    kind = "vectors"
    example = "--vectors=VECTORS.npy"
    options = ((Option("vectors", "retrieval-augmented models: a .npy file of CLIP vectors"),),)
    has_context = True

    def network(self, dtype):
        return Vectors()

    def shapes(self, frame):
        return {"vectors": ((self.section.number, self.section.dim), np.float32)}

    def fields(self, data, frame, train, tokenizer):
        return (VectorsField(self.section.number, self.section.dim),)

    def requests(self, asked, frame, tokenizer):
        return requests(asked["vectors"], self.section.number, self.section.dim)
