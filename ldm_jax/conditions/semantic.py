"""A semantic map: the class of every pixel, made as small as the latent (paper, section 4.3.2)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import images as pictures
from ldm_jax.conditions.base import Asked, Batch, Cond, Condition, ConditionNetwork, Encode, Option
from ldm_jax.data.fields import Field, Placed
from ldm_jax.errors import DataError, RequestError
from ldm_jax.models.layers import Conv


def section(n_classes: int, channels: int = 3, drop_prob: float = 0.0) -> dict:
    """One-hot maps, halved to the latent's size, to `channels` learned channels."""
    return dict(kind="semantic", n_classes=n_classes, channels=channels, n_stages=2, drop_prob=drop_prob)


class SpatialRescaler(ConditionNetwork):
    """batch["segmentation"] [B,H,W] int -> one-hot, halved `n_stages` times by 2x2 means, 1x1 conv -> concat.

    Values outside 0..n_classes-1 (255 by custom) are "no class": a zero vector; all of them are the null.
    """

    n_classes: int
    out_channels: int
    n_stages: int = 2

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        x = batch["segmentation"]
        if x.ndim == 3:
            x = jax.nn.one_hot(x, self.n_classes)
        for _ in range(self.n_stages):
            x = nn.avg_pool(x, (2, 2), (2, 2))  # torch's bilinear x0.5 without antialiasing is the 2x2 mean
        return Cond(concat=Conv(self.out_channels, (1, 1), use_bias=False, name="channel_mapper")(x))

    def null(self, batch: Batch) -> Batch:
        return {"segmentation": jnp.full_like(batch["segmentation"], 255)}


@dataclass(frozen=True)
class Segmentation(Field):
    """ "segmentation" int32 [H,W], the class of every pixel; the network makes it one-hot, which would be n_classes
    times the memory here. 255 is "no class"; DataError for another value from n_classes on."""

    n_classes: int

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        classes = placed.map("segmentation").astype(np.int32)
        wrong = classes[(classes >= self.n_classes) & (classes != 255)]
        if wrong.size:
            raise DataError(f"the segmentation of {placed.example.get('name', '')} has class {wrong.max()}, but there "
                             f"are {self.n_classes}, numbered from 0 (255 = none)")  # fmt: skip
        return {"segmentation": classes}


class Semantic(Condition):
    kind = "semantic"
    example = "--segmentation=MAP.png"
    options = ((Option("segmentation", "map of classes: a grey PNG, or a folder of them"),),)

    def network(self, dtype):
        return SpatialRescaler(self.section.n_classes, self.section.channels, self.section.n_stages)

    def shapes(self, frame):
        return {"segmentation": (frame.image, np.int32)}

    def fields(self, data, frame, train, tokenizer):
        return (Segmentation(self.section.n_classes),)

    def requests(self, asked, frame, tokenizer):
        """Grey values or palette indices are classes (255 = none)."""
        multiple, given = frame.f * frame.divisor, asked["segmentation"]
        return [self._asked(picture, multiple) for picture in pictures.pictures("segmentation", given)]

    def _asked(self, picture: pictures.Picture, multiple: int) -> Asked:
        image, n_classes = picture.image, self.section.n_classes
        if image.mode not in ("L", "P", "1", "I", "I;16"):
            raise RequestError(
                f"segmentation: {picture.origin} is a picture in colours ({image.mode}); a map of classes is grey or "
                "has a palette"
            )
        classes = np.asarray(image).astype(np.int32)
        wrong = classes[(classes < 0) | ((classes >= n_classes) & (classes != 255))]
        if wrong.size:
            raise RequestError(
                f"segmentation: {picture.origin} has class {wrong.max()}; the model has the classes "
                f"0..{n_classes - 1} (255 = none)"
            )
        padded = pictures.pad(classes, multiple)
        return Asked(picture.name, {"segmentation": padded}, padded.shape, pictures.cut_to(classes.shape))
