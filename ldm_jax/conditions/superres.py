"""A small picture to enlarge: as large as the latent, joined to it (paper, section 4.4)."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ldm_jax import images as pictures
from ldm_jax.conditions.base import Asked, Batch, Cond, Condition, ConditionNetwork, Encode, Option
from ldm_jax.data import degradation
from ldm_jax.data.fields import Field, Placed
from ldm_jax.images import to_float


def section() -> dict:
    """The small picture, as large as the latent. How it is made in training: config.data.degradation."""
    return dict(kind="superres", drop_prob=0.0)


class LowRes(ConditionNetwork):
    """batch["low_res"] [B,h,w,3] in [-1,1], as large as the latent, joined to it unchanged."""

    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        return Cond(concat=batch["low_res"])

    def null(self, batch: Batch) -> Batch:
        return {"low_res": jnp.zeros_like(batch["low_res"])}


@dataclass(frozen=True)
class Degraded(Field):
    """ "low_res" float32 [H/scale,W/scale,3] in [-1,1], the image degraded as in data/degradation.py."""

    degradation: str = "bicubic"
    scale: int = 4

    def __post_init__(self):
        if self.degradation not in degradation.KINDS:
            raise ValueError(f"degradation is {self.degradation!r}, but must be one of {', '.join(degradation.KINDS)}")

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"low_res": to_float(degradation.degrade(rng, placed.image, self.scale, self.degradation))}


class SuperResolution(Condition):
    kind = "superres"
    example = "--image=SMALL.png"
    options = ((Option("image", "picture to enlarge (super-resolution) or to fill (inpainting), or a folder"),),)

    def network(self, dtype):
        return LowRes()

    def shapes(self, frame):
        return {"low_res": ((*frame.latent, 3), np.float32)}

    def fields(self, data, frame, train, tokenizer):
        return (Degraded(data.degradation, frame.f),)

    def requests(self, asked, frame, tokenizer):
        return [self._asked(picture, frame) for picture in pictures.pictures("image", asked["image"])]

    def _asked(self, picture: pictures.Picture, frame) -> Asked:
        image = picture.pixels("image", 3)
        padded = pictures.pad(image, frame.divisor)
        size = tuple(frame.f * n for n in padded.shape[:2])
        cut = pictures.cut_to(tuple(frame.f * n for n in image.shape[:2]))
        return Asked(picture.name, {"low_res": to_float(padded)}, size, cut)
