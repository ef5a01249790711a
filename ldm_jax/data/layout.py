"""Bounding boxes as tokens for layout-to-image models (paper, section 4.3.1; the coding is Jahn et al. 2021's).

Each of at most `max_objects` objects is three tokens: what it is, its top left corner, its bottom right corner.
Empty slots hold the last token of the vocabulary three times. Two more tokens may give the corners of the part of
the image that is shown (the crop); the boxes then stay in coordinates of the whole image, else they are those of
the shown part. Classes and corners share their numbers: the place in the sequence tells them apart.

Objects are those of the sources: {"box": [x0, y0, x1, y1] in 0..1, "class": int}, and optionally the flags
"group", "occluded", "depiction", "inside": bool. A crop is (x0, y0, x1, y1) in 0..1 of the whole image.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm_jax.errors import ConfigError

Box = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# Flag k is bit k of the number that n_classes is multiplied with.
FLAGS = ("group", "occluded", "depiction", "inside")
_PALETTE = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
            (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207))


def flip_box(box: Box) -> Box:
    """The box in the picture mirrored left and right."""
    return 1 - box[2], box[1], 1 - box[0], box[3]


def clip_box(box: Box, crop: Box = WHOLE) -> Box | None:
    """The part of the box inside `crop`, in the crop's own coordinates; None where nothing is inside."""
    x0, x1 = (min(max((x - crop[0]) / (crop[2] - crop[0]), 0.0), 1.0) for x in (box[0], box[2]))
    y0, y1 = (min(max((y - crop[1]) / (crop[3] - crop[1]), 0.0), 1.0) for y in (box[1], box[3]))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


@dataclass(frozen=True)
class LayoutCoder:
    """Objects <-> tokens.

    n_classes: classes are 0..n_classes-1. flags: which flags are coded; a class token is
        class + n_classes * (1 group + 2 occluded + 4 depiction + 8 inside), of the coded flags.
    vocabulary: corners lie on a grid of floor(sqrt(vocabulary)) points each way, 90 for 8192.
    The released OpenImages model has 30 objects, crop tokens and all flags: 92 tokens of 8192.
    ValueError where the classes with their flags do not fit the vocabulary.
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
            raise ConfigError(f"{self.n_classes} classes with {len(self.flags)} flags need {highest} tokens, and one "
                              f"for empty slots: more than the vocabulary of {self.vocabulary}")

    @property
    def empty(self) -> int:
        """The token of empty slots."""
        return self.vocabulary - 1

    @property
    def grid(self) -> int:
        """Points of the grid of corners along each axis."""
        return math.isqrt(self.vocabulary)

    @property
    def length(self) -> int:
        """Tokens of one layout."""
        return 3 * self.max_objects + 2 * self.crop_tokens

    def _corner(self, x: float, y: float) -> int:
        return round(y * (self.grid - 1)) * self.grid + round(x * (self.grid - 1))

    def corners(self, box: Box) -> tuple[int, int]:
        """The tokens of a box's, or a crop's, upper left and lower right corners."""
        return self._corner(box[0], box[1]), self._corner(box[2], box[3])

    def _box(self, first: int, second: int) -> Box:
        places = (first % self.grid, first // self.grid, second % self.grid, second // self.grid)
        return tuple(place / (self.grid - 1) for place in places)

    def _class_token(self, item: dict) -> int:
        if not 0 <= item["class"] < self.n_classes:
            raise ValueError(f"class {item['class']} of an object is not in 0..{self.n_classes - 1}")
        bits = sum(1 << k for k, flag in enumerate(FLAGS) if flag in self.flags and item.get(flag))
        return item["class"] + self.n_classes * bits

    def encode(self, objects: list[dict], crop: Box = WHOLE, flip: bool = False,
               rng: np.random.Generator | None = None) -> np.ndarray:
        """Objects of the whole image -> int32 [length].

        In this order: objects beyond max_objects are dropped, the others shuffled (where `rng` is given), those
        outside the crop dropped, boxes cut to the whole image (to the crop, where there are no crop tokens), and
        everything, the crop too, mirrored where `flip`.
        """
        objects = objects[:self.max_objects]
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
        """int [length] -> (objects, crop), boxes on the grid: within 1 / (2 * 89) of what was encoded. Flags that
        are set are in the objects. Without crop tokens the crop is WHOLE. ValueError for another length."""
        if np.shape(tokens) != (self.length,):
            raise ValueError(f"a layout has {self.length} tokens, not {list(np.shape(tokens))}")
        tokens = [int(token) for token in tokens]
        objects = []
        for k in range(0, 3 * self.max_objects, 3):
            what, first, second = tokens[k:k + 3]
            if what != self.empty:
                bits, number = divmod(what, self.n_classes)
                flags = {flag: True for j, flag in enumerate(FLAGS) if bits >> j & 1}
                objects.append({"box": list(self._box(first, second)), "class": number, **flags})
        return objects, self._box(*tokens[-2:]) if self.crop_tokens else WHOLE


@dataclass(frozen=True)
class LayoutRules:
    """Which objects and images a data set keeps. Defaults: OpenImages; COCO has min_area 1e-5.

    min_area: objects must be larger, as a share of the image (w * h of the box). Then the image must have
    min_objects..max_objects left, both included.
    """

    min_area: float = 1e-4
    min_objects: int = 2
    max_objects: int = 30

    def keep(self, objects: list[dict]) -> list[dict] | None:
        """The objects that are large enough; None where the image is not kept."""
        large = [item for item in objects
                 if (item["box"][2] - item["box"][0]) * (item["box"][3] - item["box"][1]) > self.min_area]
        return large if self.min_objects <= len(large) <= self.max_objects else None


def draw_layout(objects: list[dict], size: tuple[int, int], names: tuple[str, ...] = (), crop: Box = WHOLE,
                background: np.ndarray | None = None) -> np.ndarray:
    """Boxes with their names as a picture, uint8 [H,W,3] for size = (h, w).

    names: those of the classes, () = their numbers; flags that are set follow as initials. crop: drawn dark grey
    where it is not WHOLE. background: uint8 [H,W,3] to draw on, else white.
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
    # Larger boxes first, so that the names of small ones stay readable.
    for item in sorted(objects, key=lambda o: -(o["box"][2] - o["box"][0]) * (o["box"][3] - o["box"][1])):
        colour = _PALETTE[item["class"] % len(_PALETTE)]
        box = pixels(item["box"])
        pen.rectangle(box, outline=colour, width=line)
        text = names[item["class"]] if names else str(item["class"])
        initials = "".join(flag[0] for flag in FLAGS if item.get(flag))
        text += f" ({initials})" if initials else ""
        x0, y0, x1, y1 = pen.textbbox((0, 0), text, font=font)
        # Above the box where there is room, and never over the right border.
        left = max(min(box[0], width - (x1 - x0) - 2), 0)
        top = box[1] - (y1 - y0) - 2 if box[1] >= y1 - y0 + 2 else box[1]
        pen.rectangle((left, top, left + x1 - x0 + 2, top + y1 - y0 + 2), fill=colour)
        pen.text((left + 1 - x0, top + 1 - y0), text, fill="white", font=font)
    return np.array(picture)
