"""Bounding boxes as tokens, for layout-to-image models (paper, section 4.3.1; coding of Jahn et al. 2021).

Each of at most `max_objects` objects has three tokens: its class, its top left corner, its bottom right corner. An
empty slot is the last token of the vocabulary, three times. Optionally two more tokens are the corners of the crop, the
part of the image that is shown; then boxes are in coordinates of the whole image, otherwise in those of the crop.
Classes and corners use the same numbers. The position in the sequence decides which of them a token is.

Objects are those of the sources: {"box": [x0, y0, x1, y1] in 0..1, "class": int}, and optionally the flags
"group", "occluded", "depiction", "inside": bool. A crop is (x0, y0, x1, y1) in 0..1 of the whole image.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm_jax.errors import ConfigError, DataError

Box = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# In a class token, flag k is bit k of the multiple of n_classes.
FLAGS = ("group", "occluded", "depiction", "inside")
_PALETTE = (
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (127, 127, 127),
    (188, 189, 34),
    (23, 190, 207),
)


def flip_box(box: Box) -> Box:
    """The box in the picture mirrored left and right."""
    return 1 - box[2], box[1], 1 - box[0], box[3]


def clip_box(box: Box, crop: Box = WHOLE) -> Box | None:
    """The part of the box inside `crop`, in coordinates of the crop. None if the box is outside."""
    x0, x1 = (min(max((x - crop[0]) / (crop[2] - crop[0]), 0.0), 1.0) for x in (box[0], box[2]))
    y0, y1 = (min(max((y - crop[1]) / (crop[3] - crop[1]), 0.0), 1.0) for y in (box[1], box[3]))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


@dataclass(frozen=True)
class LayoutCoder:
    """Objects <-> tokens.

    n_classes: classes are 0..n_classes-1. flags: the flags that are coded. A class token is
        class + n_classes * (1 group + 2 occluded + 4 depiction + 8 inside), with the coded flags only.
    vocabulary: number of tokens. Corners are rounded to a grid of floor(sqrt(vocabulary)) points each way: 90 for 8192.
    The released OpenImages model has 30 objects, crop tokens and all flags: sequences of 92 tokens from 8192.
    ConfigError if the classes with their flags do not fit into the vocabulary.
    """

    n_classes: int
    max_objects: int = 30
    vocabulary: int = 8192
    crop_tokens: bool = True
    flags: tuple[str, ...] = FLAGS

    def __post_init__(self):
        unknown = set(self.flags) - set(FLAGS)
        if unknown:
            raise ConfigError(f"flags {', '.join(sorted(unknown))} are not among {', '.join(FLAGS)}")
        highest = self.n_classes * (1 + sum(1 << k for k, flag in enumerate(FLAGS) if flag in self.flags))
        if self.n_classes < 1 or highest > self.empty:
            raise ConfigError(
                f"{self.n_classes} classes with {len(self.flags)} flags need {highest} tokens, and one "
                f"for empty slots: more than the vocabulary of {self.vocabulary}"
            )

    @property
    def empty(self) -> int:
        """The token of empty slots."""
        return self.vocabulary - 1

    @property
    def grid(self) -> int:
        """Number of grid points along each axis."""
        return math.isqrt(self.vocabulary)

    @property
    def length(self) -> int:
        """Number of tokens of a layout."""
        return 3 * self.max_objects + 2 * self.crop_tokens

    def _corner(self, x: float, y: float) -> int:
        return round(y * (self.grid - 1)) * self.grid + round(x * (self.grid - 1))

    def corners(self, box: Box) -> tuple[int, int]:
        """The tokens of the top left and the bottom right corner of a box or crop."""
        return self._corner(box[0], box[1]), self._corner(box[2], box[3])

    def _box(self, first: int, second: int) -> Box:
        places = (first % self.grid, first // self.grid, second % self.grid, second // self.grid)
        return tuple(place / (self.grid - 1) for place in places)

    def _class_token(self, item: dict) -> int:
        if not 0 <= item["class"] < self.n_classes:
            raise DataError(
                f"class {item['class']} of an object is not in 0..{self.n_classes - 1} (config.conditioner.n_classes)"
            )
        bits = sum(1 << k for k, flag in enumerate(FLAGS) if flag in self.flags and item.get(flag))
        return item["class"] + self.n_classes * bits

    def encode(
        self, objects: list[dict], crop: Box = WHOLE, flip: bool = False, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Objects of the whole image -> int32 [length].

        Steps in order: objects after the first max_objects are dropped. The others are shuffled, if `rng` is given.
        Those outside the crop are dropped. Boxes are clipped to the whole image, or without crop tokens to the crop. If
        `flip`, boxes and crop are mirrored.
        """
        objects = objects[: self.max_objects]
        if rng is not None:
            objects = [objects[k] for k in rng.permutation(len(objects))]
        tokens = []
        for item in objects:
            shown = clip_box(item["box"], crop)
            if shown is not None:
                box = clip_box(item["box"]) if self.crop_tokens else shown
                tokens += [self._class_token(item), *self.corners(flip_box(box) if flip else box)]
        tokens += [self.empty] * (3 * self.max_objects - len(tokens))
        if self.crop_tokens:
            tokens += self.corners(flip_box(crop) if flip else crop)
        return np.array(tokens, np.int32)

    def decode(self, tokens: np.ndarray) -> tuple[list[dict], Box]:
        """int [length] -> (objects, crop). Boxes are on the grid: within 1 / (2 * 89) of those that were encoded.
        Objects have the flags that are set. Without crop tokens the crop is WHOLE. ValueError for another length."""
        if np.shape(tokens) != (self.length,):
            raise ValueError(f"a layout has {self.length} tokens, not {list(np.shape(tokens))}")
        tokens = [int(token) for token in tokens]
        objects = []
        for k in range(0, 3 * self.max_objects, 3):
            what, first, second = tokens[k : k + 3]
            if what != self.empty:
                bits, number = divmod(what, self.n_classes)
                flags = {flag: True for j, flag in enumerate(FLAGS) if bits >> j & 1}
                objects.append({"box": list(self._box(first, second)), "class": number, **flags})
        return objects, self._box(*tokens[-2:]) if self.crop_tokens else WHOLE


@dataclass(frozen=True)
class LayoutRules:
    """Which objects and images of a data set are used. The defaults are for OpenImages; for COCO min_area is 1e-5.

    min_area: smaller objects are dropped; width * height of the box, as a share of the image. An image is used if
    it then has min_objects..max_objects objects, both included.
    """

    min_area: float = 1e-4
    min_objects: int = 2
    max_objects: int = 30

    def keep(self, objects: list[dict]) -> list[dict] | None:
        """The objects that are large enough. None if the image is not used."""
        large = [
            item
            for item in objects
            if (item["box"][2] - item["box"][0]) * (item["box"][3] - item["box"][1]) > self.min_area
        ]
        return large if self.min_objects <= len(large) <= self.max_objects else None


def draw_layout(
    objects: list[dict],
    size: tuple[int, int],
    names: tuple[str, ...] = (),
    crop: Box = WHOLE,
    background: np.ndarray | None = None,
) -> np.ndarray:
    """Draws boxes with the names of their classes: uint8 [H,W,3] for size = (h, w).

    names: names of the classes; () means that numbers are written. Initials of the flags that are set follow. crop:
    drawn in dark grey, unless it is WHOLE. background: uint8 [H,W,3]; None means white.
    """
    height, width = size
    picture = Image.new("RGB", (width, height), "white") if background is None else Image.fromarray(background)
    if picture.size != (width, height):
        raise ValueError(f"the background is {picture.height}x{picture.width}, but the layout {height}x{width}")
    pen = ImageDraw.Draw(picture)
    line = max(round(min(size) / 100), 1)
    font = ImageFont.load_default(max(min(size) / 22, 9))

    def pixels(box):
        return (box[0] * (width - 1), box[1] * (height - 1), box[2] * (width - 1), box[3] * (height - 1))

    if crop != WHOLE:
        pen.rectangle(pixels(crop), outline=(64, 64, 64), width=line)
    # Larger boxes are drawn first, so that they do not cover the names of smaller ones.
    for item in sorted(objects, key=lambda o: -(o["box"][2] - o["box"][0]) * (o["box"][3] - o["box"][1])):
        colour = _PALETTE[item["class"] % len(_PALETTE)]
        box = pixels(item["box"])
        pen.rectangle(box, outline=colour, width=line)
        text = names[item["class"]] if names else str(item["class"])
        initials = "".join(flag[0] for flag in FLAGS if item.get(flag))
        text += f" ({initials})" if initials else ""
        x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
        # The name is above the box if there is room, and never beyond the right border.
        left = max(min(box[0], width - (x1 - x0) - 2), 0)
        top = box[1] - (y1 - y0) - 2 if box[1] >= y1 - y0 + 2 else box[1]
        pen.rectangle((left, top, left + x1 - x0 + 2, top + y1 - y0 + 2), fill=colour)
        pen.text((left + 1 - x0, top + 1 - y0), text, fill="white", font=font)
    return np.array(picture)
