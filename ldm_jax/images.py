"""Images at the edges of the system: files, PIL images and arrays in; uint8, PNG files and grids out.

Inside, images are float32 [B,H,W,C] in [-1,1]; outside, uint8 [N,H,W,C].
"""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm_jax.errors import RequestError
from ldm_jax.files import at, is_local, local, mistaken, opened, write

PIXELS = 2**26  # of a picture that is read, at most
STRIP = 2**20  # pixels that are converted at once, about
# Pillow knows more, and runs another program for some of them.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def to_float(image: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 in [-1,1]: x / 127.5 - 1."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float in [-1,1] -> uint8: (x + 1) * 127.5, rounded to the nearest (halves to even), clipped to 0..255.
    The exact inverse of `to_float` on its range."""
    return np.clip(np.rint((np.asarray(image, np.float32) + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)


def to_channels(image: Image.Image, channels: int) -> np.ndarray:
    """Any Pillow image -> uint8 [H,W,channels]: transparency is composited on white, palettes are resolved,
    16-bit grey is divided by 257. ValueError for floating-point pixels, whose range is unknown."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range: convert the image to 8 or 16 bits")
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and not image.has_transparency_data:
        return np.asarray(image).reshape(image.height, image.width, channels)
    out, rows = np.empty((image.height, image.width, channels), np.uint8), max(STRIP // max(image.width, 1), 1)
    for top in range(0, image.height, rows):  # a conversion makes several copies
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        out[top : top + rows] = np.asarray(_in_mode(strip, mode)).reshape(-1, image.width, channels)
    return out


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow image but of floating-point pixels, as "L" or "RGB"."""
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


class Picture(NamedTuple):
    """A picture that was given. name: the file's, without its suffix, or ""; origin: for messages."""

    name: str
    image: Image.Image
    origin: str

    def pixels(self, option: str, channels: int) -> np.ndarray:
        """uint8 [H,W,channels]. RequestError for pixels of no known range, or that cannot be converted."""
        try:
            return to_channels(self.image, channels)
        except Exception as error:  # Pillow's converters raise many kinds
            raise RequestError(f"{option}: {self.origin}: {error}") from None


def pictures(option: str, given: Any) -> list[Picture]:
    """Pictures from a path (a file, or a folder: its files by name), a PIL image, a uint8 array [H,W], [H,W,C] or
    [N,H,W,C], or a list of any of these. Maps [H,W] may be of any integer type, or of truth values.

    option: for messages. RequestError for what is none of these, for no picture at all, or a file that cannot be read.
    """
    if isinstance(given, str | Path):
        return [Picture(path.stem, _open(option, path), str(path)) for path in files(option, given)]
    if isinstance(given, Image.Image):
        return [Picture("", given, "the PIL image")]
    if isinstance(given, list | tuple):
        found = [picture for one in given for picture in pictures(option, one)]
        if not found:
            raise RequestError(f"{option}: an empty list holds no pictures")
        return found
    array = np.asarray(given)
    if array.ndim == 4:
        return [picture for one in array for picture in pictures(option, one)]
    integers = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
    if array.ndim not in (2, 3) or not integers or (array.ndim == 3 and array.dtype != np.uint8):
        raise RequestError(
            f"{option}: pictures are paths, PIL images or uint8 arrays [H,W,C], not {type(given).__name__} "
            f"{array.dtype} {array.shape}"
        )
    if array.dtype == bool:
        array = np.uint8(255) * array
    if array.ndim == 2:
        array = array if array.dtype == np.uint8 else array.astype(np.int32)
    elif array.shape[-1] == 1:
        array = array[..., 0]
    return [Picture("", Image.fromarray(array), "the array")]


def files(option: str, path: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The file, or a folder's files of these kinds in the order of their names. RequestError where there are none.
    UsageError for an address such as gs://bucket/a.png."""
    path = local(path, option)
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("*") if p.suffix.lower() in suffixes)
    if not found:
        problem = "holds none" if path.is_dir() else "does not exist"
        raise RequestError(f"{option}={path} {problem}: give a file or a folder of {', '.join(suffixes)}")
    return found


def _open(option: str, path: Path) -> Image.Image:
    try:
        image = open_image(path)
        image.load()
    except Exception as error:  # Pillow's decoders raise nearly any kind for a damaged file
        reason = mistaken(path) or str(error)[:300] or type(error).__name__
        raise RequestError(f"{option}={path} is not a picture that can be read: {reason}") from None
    return image


def open_image(path: str | Path, most: int | None = None) -> Image.Image:
    """A picture whose pixels are not decoded yet. ValueError for more than `PIXELS` of them, and for what is no file;
    nearly any exception for a damaged one. ReadFailed where a bucket does not give it. most: so many bytes of a file in
    a bucket are read."""
    path = at(path)
    if is_local(path) and not path.is_file():
        raise ValueError("it is not a file")
    image = Image.open(path if is_local(path) else opened(path, most), formats=FORMATS)
    if image.width * image.height > PIXELS:
        image.close()
        raise ValueError(f"it has {image.width}x{image.height} pixels, but at most {PIXELS} are read: make it smaller")
    return image


def pad(array: np.ndarray, multiple: int) -> np.ndarray:
    """[H,W,...] with its edge repeated at the bottom and right up to a multiple."""
    spare = [(0, -n % multiple) for n in array.shape[:2]]
    return np.pad(array, spare + [(0, 0)] * (array.ndim - 2), mode="edge")


def cut_to(size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """image [H,W,...] -> its upper left part of `size`: undoes `pad`."""
    return lambda image: image[: size[0], : size[1]]


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """[N,H,W,C], uint8 or in [-1,1] -> one uint8 picture with white gaps, row by row."""
    images = images if images.dtype == np.uint8 else to_uint8(images)
    n, h, w, c = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return sheet


def to_pil(image: np.ndarray) -> Image.Image:
    """uint8 [H,W,C], C = 1 or 3."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save_png(path: str | Path, image: np.ndarray, texts: dict | None = None) -> None:
    """Writes uint8 [H,W,C] (C = 1 or 3); `texts` become the file's text entries. A picture that is there is whole."""
    path, info, file = at(path), PngInfo(), io.BytesIO()
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, value in (texts or {}).items():
        info.add_text(name, str(value))
    to_pil(image).save(file, "PNG", pnginfo=info)
    write(path, file.getvalue())


class Images(Sequence):
    """Images that were made, uint8 [H,W,C] each; of one size as an array [N,H,W,C].

    names: what was asked for, one an image, "" where there is nothing to say. settings: how they were made.
    `np.asarray(images)`, `images[i]`, `len(images)` and `images.shape` do what they do for an array.
    """

    def __init__(self, images: Sequence[np.ndarray], names: Sequence[str] | None = None, settings: dict | None = None):
        self._images = list(images)
        self.names = list(names) if names is not None else [""] * len(self._images)
        self.settings = dict(settings or {})

    @property
    def array(self) -> np.ndarray:
        """uint8 [N,H,W,C]. ValueError where the images differ in size."""
        sizes = {image.shape for image in self._images}
        if len(sizes) != 1:
            raise ValueError(f"{len(self)} images of the sizes {sorted(sizes)} are no array; take them one by one")
        return np.stack(self._images)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Images(self._images[index], self.names[index], self.settings)
        return self._images[index]

    def __repr__(self) -> str:
        sizes = sorted({"x".join(map(str, image.shape)) for image in self._images})
        return f"<{len(self)} images, uint8 {', '.join(sizes)}>"

    def pil(self) -> list[Image.Image]:
        return [to_pil(image) for image in self._images]

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one picture; they must have one size."""
        return to_pil(grid(self.array, columns))

    def save(self, folder: str | Path) -> list[Path]:
        """Writes 000000_NAME.png, 000001_NAME.png, ... into the folder, with their settings as text; their paths."""
        paths = [local(folder, "folder") / file_name(i, name) for i, name in enumerate(self.names)]
        for i, (path, name, image) in enumerate(zip(paths, self.names, self._images)):
            save_png(path, image, png_texts(self.settings, i, name))
        return paths


def file_name(index: int, name: str) -> str:
    """(3, "a red star") -> "000003_a-red-star.png"."""
    words = "".join(c if c.isalnum() else " " for c in name).split()
    return f"{index:06d}" + ("_" + "-".join(words)[:60] if words else "") + ".png"


def png_texts(settings: dict, index: int, name: str) -> dict:
    """The text entries of image `index` of a request."""
    said = {key: value for key, value in settings.items() if value is not None} | {"index": index}
    return said | ({"condition": name} if name else {})
