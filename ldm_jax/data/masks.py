"""Random masks for inpainting: the strokes and boxes of LaMa (Suvorov et al. 2022), with its published settings.

A mask has strokes or boxes, never both. LaMa is trained with `train_256`. The other six settings are for evaluation:
masks that cover more than half of the image are drawn again, so that LaMa's "40-50 %" bin is the highest. Lengths are
in pixels of an image whose side is the number in the setting's name. For another image they are multiplied by (its
shorter side / that number), so that holes cover the same share of it.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ldm_jax.errors import ConfigError

# Directions of segments: radians from "down", counter-clockwise. Every second stroke is mirrored.
_ANGLES = 0.01 + np.arange(4)
_MOST_SEGMENTS = 5
_SHORTEST, _THINNEST = 10, 5
_SMALLEST_IMAGE = 16
_MOST_TRIES = 1000


@dataclass(frozen=True)
class Strokes:
    """count: (fewest, most) strokes. Segments are 10..length pixels long and 5..width pixels wide. A stroke has 1 to 5
    segments; each starts where the one before ends. All ranges include both ends."""

    count: tuple[int, int]
    length: int
    width: int


@dataclass(frozen=True)
class Boxes:
    """count: (fewest, most) boxes. side: (shortest, longest) side in pixels. margin: width of the border without
    boxes, in pixels."""

    count: tuple[int, int]
    side: tuple[int, int]
    margin: int


@dataclass(frozen=True)
class Setting:
    """image: side of the images that the lengths are for. box_share: probability of boxes. most_covered: masks that
    cover more of the image are drawn again."""

    image: int
    strokes: Strokes
    boxes: Boxes | None = None
    box_share: float = 0.0
    most_covered: float = 1.0


def _evaluation(image: int, strokes: Strokes, boxes: Boxes | None = None) -> Setting:
    # Strokes and boxes have the weights 1 and 0.3 in all evaluation settings of LaMa with boxes.
    return Setting(image, strokes, boxes, 0.3 / 1.3 if boxes else 0.0, most_covered=0.5)


# From configs/data_gen/random_*.yaml and configs/training/data/abl-04-256-mh-dist.yaml of the LaMa repository. LaMa's
# code draws up to one stroke more than max_times, lengths up to 9 and widths up to 4 more than their maxima; these too.
SETTINGS = {
    "train_256": Setting(256, Strokes((1, 6), 209, 104), Boxes((1, 4), (30, 150), 10), 0.5),
    "thick_256": _evaluation(256, Strokes((1, 6), 209, 104), Boxes((1, 3), (30, 150), 10)),
    "thick_512": _evaluation(512, Strokes((1, 6), 459, 254), Boxes((1, 4), (30, 300), 10)),
    "medium_256": _evaluation(256, Strokes((4, 6), 109, 54), Boxes((1, 5), (10, 50), 0)),
    "medium_512": _evaluation(512, Strokes((4, 11), 209, 104), Boxes((1, 5), (30, 150), 0)),
    "thin_256": _evaluation(256, Strokes((4, 51), 49, 14)),
    "thin_512": _evaluation(512, Strokes((4, 71), 109, 24)),
}


def draw_strokes(rng: np.random.Generator, height: int, width: int, strokes: Strokes, scale: float = 1.0) -> np.ndarray:
    """uint8 [H,W], 1 = hole. Lengths and widths are multiplied by `scale`. Ends and corners are round."""
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    for stroke in range(int(rng.integers(strokes.count[0], strokes.count[1] + 1))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        for _ in range(int(rng.integers(1, _MOST_SEGMENTS + 1))):
            angle = _ANGLES[rng.integers(len(_ANGLES))] * (-1 if stroke % 2 == 0 else 1)
            length = scale * rng.integers(_SHORTEST, strokes.length + 1)
            brush = max(round(scale * rng.integers(_THINNEST, strokes.width + 1)), 1)
            end_x = int(np.clip(x + length * np.sin(angle), 0, width))
            end_y = int(np.clip(y + length * np.cos(angle), 0, height))
            pen.line((x, y, end_x, end_y), fill=1, width=brush)
            radius = (brush - 1) / 2
            for px, py in ((x, y), (end_x, end_y)):
                pen.ellipse((px - radius, py - radius, px + radius, py + radius), fill=1)
            x, y = end_x, end_y
    return np.array(canvas)


def draw_boxes(rng: np.random.Generator, height: int, width: int, boxes: Boxes, scale: float = 1.0) -> np.ndarray:
    """uint8 [H,W], 1 = hole. Sides and margin are multiplied by `scale`."""
    mask = np.zeros((height, width), np.uint8)
    margin = round(boxes.margin * scale)
    most = min(height, width) - 2 * margin
    smallest, largest = (min(max(round(side * scale), 1), most) for side in boxes.side)
    for _ in range(int(rng.integers(boxes.count[0], boxes.count[1] + 1))):
        box_width, box_height = (int(side) for side in rng.integers(smallest, largest + 1, 2))
        left = int(rng.integers(margin, width - margin - box_width + 1))
        top = int(rng.integers(margin, height - margin - box_height + 1))
        mask[top : top + box_height, left : left + box_width] = 1
    return mask


def make_mask(rng: np.random.Generator, height: int, width: int, setting: str = "train_256") -> np.ndarray:
    """A random mask uint8 [H,W], 1 = hole, 0 = known. It is never empty.

    setting: one of SETTINGS. ConfigError for another, and for images with a side below 16 pixels.
    """
    if setting not in SETTINGS:
        raise ConfigError(f"mask setting is {setting!r}, but must be one of {', '.join(SETTINGS)}")
    if min(height, width) < _SMALLEST_IMAGE:
        raise ConfigError(
            f"masks are drawn on images of at least {_SMALLEST_IMAGE} pixels each way, not {height}x{width}"
        )
    chosen = SETTINGS[setting]
    scale = min(height, width) / chosen.image
    for _ in range(_MOST_TRIES):
        if rng.random() < chosen.box_share:
            mask = draw_boxes(rng, height, width, chosen.boxes, scale)
        else:
            mask = draw_strokes(rng, height, width, chosen.strokes, scale)
        if mask.any() and mask.mean() <= chosen.most_covered:
            return mask
    raise RuntimeError(
        f"{_MOST_TRIES} masks of {setting} on {height}x{width} all covered more than {chosen.most_covered:.0%}"
    )
