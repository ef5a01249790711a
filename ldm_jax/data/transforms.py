"""From decoded examples (uint8, any size) to arrays that can be batched: resize, crop, flip, scale to [-1,1].

Pure functions of numpy arrays [H,W,C]; whatever is random takes an explicit `numpy.random.Generator`.
Resizing is Pillow's, whose filters widen when shrinking (anti-aliasing).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR,
           "lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX,
           "nearest": Image.Resampling.NEAREST}


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 in [-1,1]: x / 127.5 - 1."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float in [-1,1] -> uint8: (x + 1) * 127.5, rounded to the nearest (halves to even), clipped to 0..255.
    The exact inverse of `to_float` on its range."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """[H,W,C] uint8 -> [h,w,C] uint8 for size = (h, w), C = 1 or 3."""
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation is {interpolation!r}, but must be one of {', '.join(FILTERS)}")
    if image.shape[:2] == tuple(size):
        return image
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = np.asarray(pixels.resize((size[1], size[0]), FILTERS[interpolation]))
    return resized.reshape(*size, image.shape[-1])


def resize_shorter(image: np.ndarray, side: int, interpolation: str = "bicubic") -> np.ndarray:
    """Resizes [H,W,C] so that its shorter side is `side`, keeping the proportions (rounded to pixels)."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    return resize(image, (max(round(height * scale), side), max(round(width * scale), side)), interpolation)


def cover(image: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Resizes [H,W,C] to the smallest image of the same proportions that covers size = (h, w)."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    return resize(image, (max(round(height * scale), size[0]), max(round(width * scale), size[1])),
                  interpolation)


def crop(image: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The window of size = (h, w) at (top, left). ValueError where it leaves the image."""
    height, width = image.shape[:2]
    if top < 0 or left < 0 or top + size[0] > height or left + size[1] > width:
        raise ValueError(f"a crop of {size[0]}x{size[1]} at ({top}, {left}) leaves the image "
                         f"of {height}x{width}")
    return image[top:top + size[0], left:left + size[1]]


def center_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle window of size = (h, w); where a pixel is left over it stays at the bottom and right."""
    return crop(image, (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2, size)


def random_crop(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A window of size = (h, w), every position equally likely."""
    top = int(rng.integers(max(image.shape[0] - size[0], 0) + 1))
    left = int(rng.integers(max(image.shape[1] - size[1], 0) + 1))
    return crop(image, top, left, size)


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors left and right with probability 1/2."""
    return image[:, ::-1] if rng.random() < 0.5 else image


@dataclass(frozen=True)
class ImageTransform:
    """Callable (example, rng) -> {"image": float32 [h,w,C] in [-1,1], "label": int32 where there is one}.

    size: an int or (h, w), the size that comes out. Steps in order:
    resize "shorter": the shorter side becomes `resize_to` (None: as small as covers `size`);
           "stretch": to `size` exactly, proportions lost (`resize_to` must be None); "none": as it is.
    An image that is then smaller than `size` on either side is ENLARGED until it covers it.
    crop "center" | "random" a window of `size`; "none": the image must have `size` by now, else ValueError.
    flip: mirror half of the images.
    Keys that cannot be batched (text, objects, name, ...) are dropped here.
    """

    size: int | tuple[int, int]
    resize: str = "shorter"
    resize_to: int | None = None
    crop: str = "center"
    flip: bool = False
    interpolation: str = "bicubic"

    def __post_init__(self):
        for name, value, known in (("resize", self.resize, ("shorter", "stretch", "none")),
                                   ("crop", self.crop, ("center", "random", "none")),
                                   ("interpolation", self.interpolation, tuple(FILTERS))):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}")
        if self.resize_to is not None and (self.resize != "shorter" or self.resize_to < min(self.hw)):
            raise ValueError(f"resize_to = {self.resize_to} is for resize 'shorter' (here {self.resize!r}) "
                             f"and must be at least the shorter side of size {self.hw}")

    @property
    def hw(self) -> tuple[int, int]:
        """The size that comes out as (h, w)."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, size = example["image"], self.hw
        if self.resize == "stretch":
            image = resize(image, size, self.interpolation)
        elif self.resize == "shorter" and self.resize_to is None:
            image = cover(image, size, self.interpolation)
        elif self.resize == "shorter":
            image = resize_shorter(image, self.resize_to, self.interpolation)
        if self.crop != "none":
            if image.shape[0] < size[0] or image.shape[1] < size[1]:
                image = cover(image, size, self.interpolation)
            image = center_crop(image, size) if self.crop == "center" else random_crop(image, size, rng)
        if image.shape[:2] != size:
            raise ValueError(f"image {example.get('name', '')} is {image.shape[0]}x{image.shape[1]} after "
                             f"resize {self.resize!r}, not {size[0]}x{size[1]}: choose a crop, or 'stretch'")
        if self.flip:
            image = random_flip(image, rng)
        out = {"image": to_float(np.ascontiguousarray(image))}
        if "label" in example:
            out["label"] = np.int32(example["label"])
        return out
