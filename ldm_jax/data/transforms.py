"""Turns decoded images (uint8, any size) into arrays that can be batched: resize, crop, flip, scale to [-1,1].

Pure functions of numpy arrays [H,W,C]; random ones take a `numpy.random.Generator`. Pillow resizes: its filters widen
when they shrink an image, which avoids aliasing.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm_jax.errors import ConfigError, DataError
from ldm_jax.images import to_float

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """[H,W,C] uint8 -> [h,w,C] uint8 for size = (h, w), C = 1 or 3."""
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation is {interpolation!r}, but must be one of {', '.join(FILTERS)}")
    if image.shape[:2] == tuple(size):
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(pixels.resize((size[1], size[0]), FILTERS[interpolation]))
    return resized.reshape(*size, image.shape[-1])


def with_shorter(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(h, w) scaled so that the shorter side is `side`. Proportions are kept, up to rounding to pixels."""
    scale = side / min(size)
    return max(round(size[0] * scale), side), max(round(size[1] * scale), side)


def covering(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The smallest size with the proportions of (h, w) that covers `window`."""
    scale = max(window[0] / size[0], window[1] / size[1])
    return max(round(size[0] * scale), window[0]), max(round(size[1] * scale), window[1])


def crop(image: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The window of size = (h, w) at (top, left). ValueError if it is not inside the image."""
    height, width = image.shape[:2]
    if top < 0 or left < 0 or top + size[0] > height or left + size[1] > width:
        raise ValueError(f"a crop of {size[0]}x{size[1]} at ({top}, {left}) leaves the image of {height}x{width}")
    return image[top : top + size[0], left : left + size[1]]


@dataclass(frozen=True)
class Placing:
    """Which part of an image is shown, and at which size. It is the same for the image, its maps and its boxes.

    Steps in order: the window (top, left, height, width) of the original image (h, w) is cut out, resized to `resized`
    (h, w), cropped to `cut` (top, left, height, width), and mirrored if `flip`.
    """

    original: tuple[int, int]
    window: tuple[int, int, int, int]
    resized: tuple[int, int]
    cut: tuple[int, int, int, int]
    flip: bool

    def image(self, image: np.ndarray, interpolation: str = "bicubic") -> np.ndarray:
        """[H,W,C] uint8 -> [h,w,C] uint8. ValueError if the size of the image is not `original`."""
        if image.shape[:2] != self.original:
            raise ValueError(
                f"a picture or map of {image.shape[0]}x{image.shape[1]} does not belong to an image of "
                f"{self.original[0]}x{self.original[1]}"
            )
        top, left, *size = self.window
        image = resize(np.ascontiguousarray(crop(image, top, left, size)), self.resized, interpolation)
        top, left, *size = self.cut
        image = crop(image, top, left, size)
        return np.ascontiguousarray(image[:, ::-1] if self.flip else image)

    def map(self, values: np.ndarray) -> np.ndarray:
        """[H,W] uint8 -> [h,w] uint8. Resizing takes the nearest pixel, so there are no new values."""
        return self.image(values[..., None], "nearest")[..., 0]

    @property
    def shown(self) -> tuple[float, float, float, float]:
        """The part of the original image that is shown: (x0, y0, x1, y1) in 0..1, before mirroring."""
        top, left, height, width = self.window
        step_y, step_x = height / self.resized[0], width / self.resized[1]
        y, x = top + self.cut[0] * step_y, left + self.cut[1] * step_x
        whole_y, whole_x = self.original
        return x / whole_x, y / whole_y, (x + self.cut[3] * step_x) / whole_x, (y + self.cut[2] * step_y) / whole_y


@dataclass(frozen=True)
class ImageTransform:
    """Callable (example, rng) -> {"image": float32 [h,w,C] in [-1,1], "label": int32 if the example has one}.

    size: the size of the result, an int or (h, w). Steps in order:
    resize  "shorter": the shorter side becomes `resize_to`; None: the image just covers `size`
            "stretch": the image becomes `size`, proportions are not kept
            "none": the image keeps its size
            "square": a random square of the original becomes `size`, which is a square. Its side is between
            `smallest_square` and 1 times the shorter side; None: between `size` and the shorter side. No crop follows
    If the image is now smaller than `size` on either side, it is enlarged until it covers `size`.
    crop    "center" | "random": a window of `size`; "none": the image must already have this size, else DataError
    flip    half of the images are mirrored
    Other keys of the example are dropped. Fields (fields.py) add what a condition needs.
    """

    size: int | tuple[int, int]
    resize: str = "shorter"
    resize_to: int | None = None
    crop: str = "center"
    flip: bool = False
    interpolation: str = "bicubic"
    smallest_square: float | None = None

    def __post_init__(self):
        for name, value, known in (
            ("resize", self.resize, ("shorter", "stretch", "none", "square")),
            ("crop", self.crop, ("center", "random", "none")),
            ("interpolation", self.interpolation, tuple(FILTERS)),
        ):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}, but must be one of {', '.join(known)}")
        if self.resize_to is not None and (self.resize != "shorter" or self.resize_to < min(self.hw)):
            raise ConfigError(
                f"resize_to = {self.resize_to} is for resize 'shorter' (here {self.resize!r}) "
                f"and must be at least the shorter side of size {self.hw}"
            )
        if self.resize == "square" and self.hw[0] != self.hw[1]:
            raise ConfigError(f"resize 'square' gives squares, not size {self.hw}")
        if self.smallest_square is not None and not (self.resize == "square" and 0 < self.smallest_square <= 1):
            raise ConfigError(
                f"smallest_square = {self.smallest_square} is for resize 'square' (here {self.resize!r}) "
                "and must be above 0 and at most 1"
            )

    @property
    def hw(self) -> tuple[int, int]:
        """The size of the result as (h, w)."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def _window(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A random square (top, left, height, width)."""
        shorter = min(height, width)
        if self.smallest_square is None:
            side = int(rng.integers(min(self.hw[0], shorter), shorter + 1))
        else:
            side = max(int(rng.uniform(self.smallest_square, 1) * shorter), 1)
        return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side

    def place(self, example: dict, rng: np.random.Generator) -> Placing:
        """Chooses which part of the example's image is shown. Pixels are not read."""
        original, size = example["image"].shape[:2], self.hw
        window, resized = (0, 0, *original), original
        if self.resize == "square":
            window, resized = self._window(*original, rng), size
        elif self.resize == "stretch":
            resized = size
        elif self.resize == "shorter" and self.resize_to is None:
            resized = covering(original, size)
        elif self.resize == "shorter":
            resized = with_shorter(original, self.resize_to)
        top = left = 0
        if self.crop != "none":
            if resized[0] < size[0] or resized[1] < size[1]:
                resized = covering(resized, size)
            spare = resized[0] - size[0], resized[1] - size[1]
            if self.crop == "center":
                top, left = spare[0] // 2, spare[1] // 2
            else:
                top, left = int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))
        elif resized != size:
            raise DataError(
                f"image {example.get('name', '')} is {resized[0]}x{resized[1]} after "
                f"resize {self.resize!r}, not {size[0]}x{size[1]}: choose a crop, or 'stretch'"
            )
        return Placing(original, window, resized, (top, left, *size), self.draw_flip(rng))

    def draw_flip(self, rng: np.random.Generator) -> bool:
        """Whether the image is mirrored. `place` draws this last."""
        return bool(self.flip and rng.random() < 0.5)

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        out = {"image": to_float(self.place(example, rng).image(example["image"], self.interpolation))}
        if "label" in example:
            out["label"] = np.int32(example["label"])
        return out
