"""What a batch holds besides the image: fields, made from a source's example. Each kind of condition has its own
(ldm_jax/conditions).

    transform = WithFields(ImageTransform(256, crop="random", flip=True), (Masked("train_256"),))
    batches.batches(source, transform, ...)     # "image", "masked_image", "mask"

The image is placed (resized, cropped, mirrored) first, with the same random numbers as without fields; maps and boxes
follow the same placing.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ldm_jax.data.transforms import ImageTransform, Placing
from ldm_jax.errors import DataError
from ldm_jax.images import to_float


@dataclass(frozen=True)
class Placed:
    """example: as the source gives it. image: uint8 [H,W,C] as the model will see it. placing: how it got there."""

    example: dict
    image: np.ndarray
    placing: Placing

    def get(self, key: str):
        """The example's entry; DataError with what it has instead."""
        if key not in self.example:
            raise DataError(f"example {self.example.get('name', '')} has no {key!r}, only {', '.join(self.example)}")
        return self.example[key]

    def map(self, key: str) -> np.ndarray:
        """The example's map [H,W], placed like the image, by the nearest pixel."""
        return self.placing.map(self.get(key))


class Field:
    """Makes fields of a batch from one example. Subclasses are frozen dataclasses that can be pickled, for workers.

    reads_image: it needs the picture or what lies on it, not the example's annotations alone.
    is_encoded: its network encodes it with the first stage, so that cached latents do not replace it.
    """

    reads_image: ClassVar[bool] = True
    is_encoded: ClassVar[bool] = False

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """{field: array} of one example, without the batch's axis."""
        raise NotImplementedError


@dataclass(frozen=True)
class WithFields:
    """Callable (example, rng) -> {"image": float32 [h,w,C] in [-1,1]} and what every one of `fields` adds."""

    transform: ImageTransform
    fields: tuple[Field, ...]

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        placing = self.transform.place(example, rng)
        placed = Placed(example, placing.image(example["image"], self.transform.interpolation), placing)
        out = {"image": to_float(placed.image)}
        for field in self.fields:
            out |= field(placed, rng)
        return out
