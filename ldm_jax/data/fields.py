"""What a batch holds besides the image: the field of every conditional task, made from a source's example.

    transform = WithFields(ImageTransform(256, crop="random", flip=True), (Inpainting("train_256"),))
    batches.batches(source, transform, ...)     # "image", "masked_image", "mask"

The image is placed (resized, cropped, mirrored) first, with the same random numbers as without fields; maps and boxes
follow the same placing. Every maker of a field is a frozen dataclass that can be pickled, for worker processes.
The module is not called tasks: a task is what trains a model (ldm_jax/training).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldm_jax.data import degradation, masks
from ldm_jax.data.layout import LayoutCoder, LayoutRules
from ldm_jax.data.tokenizers import TextTokenizer
from ldm_jax.data.transforms import ImageTransform, Placing, to_float


@dataclass(frozen=True)
class Placed:
    """example: as the source gives it. image: uint8 [H,W,C] as the model will see it. placing: how it got there."""

    example: dict
    image: np.ndarray
    placing: Placing

    def get(self, key: str):
        """The example's entry; ValueError with what it has instead."""
        if key not in self.example:
            raise ValueError(f"example {self.example.get('name', '')} has no {key!r}, only {', '.join(self.example)}")
        return self.example[key]

    def map(self, key: str) -> np.ndarray:
        """The example's map [H,W], placed like the image, by the nearest pixel."""
        return self.placing.map(self.get(key))


Field = Callable[[Placed, np.random.Generator], dict[str, np.ndarray]]


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


@dataclass(frozen=True)
class Label:
    """"label" int32, the class."""

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"label": np.int32(placed.get("label"))}


@dataclass(frozen=True)
class Text:
    """"tokens" int32 [L] of the caption, and with `mask` "token_mask" int32 [L], 1 = a token.

    Of several captions one is drawn, another one in another pass over the data (a function of seed and sample). The
    released models have no mask: padding is attended to.
    """

    tokenizer: TextTokenizer
    mask: bool = False

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        text = placed.get("text")
        if not isinstance(text, str):
            text = text[int(rng.integers(len(text)))]
        tokens, mask = self.tokenizer(text)
        return {"tokens": tokens, "token_mask": mask} if self.mask else {"tokens": tokens}


@dataclass(frozen=True)
class Layout:
    """"tokens" int32 [L] of the objects (layout.py). min_area: smaller objects, as a share of the whole image, are
    left out. shuffle: their order is random, as in training the released models."""

    coder: LayoutCoder
    min_area: float = 1e-4
    shuffle: bool = True

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        rules = LayoutRules(self.min_area, 0, len(placed.get("objects")))
        objects, placing = rules.keep(placed.get("objects")), placed.placing
        return {"tokens": self.coder.encode(objects, placing.shown, placing.flip, rng if self.shuffle else None)}


@dataclass(frozen=True)
class Segmentation:
    """"segmentation" int32 [H,W], the class of every pixel; the network makes it one-hot, which would be n_classes
    times the memory here. 255 is "no class"; ValueError for another value from n_classes on."""

    n_classes: int

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        classes = placed.map("segmentation").astype(np.int32)
        wrong = classes[(classes >= self.n_classes) & (classes != 255)]
        if wrong.size:
            raise ValueError(f"the segmentation of {placed.example.get('name', '')} has class {wrong.max()}, but there "
                             f"are {self.n_classes}, numbered from 0 (255 = none)")
        return {"segmentation": classes}


@dataclass(frozen=True)
class LowRes:
    """"low_res" float32 [H/scale,W/scale,3] in [-1,1], the image degraded as in degradation.py."""

    kind: str = "bicubic"
    scale: int = 4

    def __post_init__(self):
        if self.kind not in degradation.KINDS:
            raise ValueError(f"degradation is {self.kind!r}, but must be one of {', '.join(degradation.KINDS)}")

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"low_res": to_float(degradation.degrade(rng, placed.image, self.scale, self.kind))}


@dataclass(frozen=True)
class Inpainting:
    """"mask" float32 [H,W,1], 1 = hole, and "masked_image" float32 [H,W,C] in [-1,1], -1 (black) in the hole.

    setting: one of masks.SETTINGS, a random mask; or "given", the source's own mask, for evaluation.
    """

    setting: str = "train_256"

    def __post_init__(self):
        if self.setting not in (*masks.SETTINGS, "given"):
            raise ValueError(f"mask setting is {self.setting!r}, but must be one of {', '.join(masks.SETTINGS)}, given")

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if self.setting == "given":
            mask = placed.map("mask")
        else:
            mask = masks.make_mask(rng, *placed.image.shape[:2], self.setting)
        hole = mask[..., None] != 0
        return {"mask": hole.astype(np.float32), "masked_image": to_float(np.where(hole, np.uint8(0), placed.image))}


@dataclass(frozen=True)
class Vectors:
    """"vectors" float32 [number,dim], the first of the example's "vectors"; where it has fewer, zeros follow."""

    number: int
    dim: int

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        given = np.asarray(placed.get("vectors"), np.float32).reshape(-1, self.dim)[: self.number]
        return {"vectors": np.pad(given, ((0, self.number - len(given)), (0, 0)))}
