"""What a user asks a sampler for -> fields of a batch: labels, prompts, layouts, maps, pictures to enlarge or to fill.

Every function gives a list of `Request`s. Pictures need not have a size that the networks can take: they are padded
with their edge to a multiple of `multiple`, and the result is cut back.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ldm_jax.data.layout import LayoutCoder
from ldm_jax.data.sources import to_channels
from ldm_jax.data.tokenizers import TextTokenizer
from ldm_jax.data.transforms import covering, crop, resize, to_float

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Request:
    """One condition. name: for the file's name and text; fields: of a batch, without its first axis.

    size: (H, W) of the picture to make, a multiple of what the networks take, or None for the model's own.
    finish: the picture made, uint8 [H,W,C], -> the picture to keep.
    """

    name: str
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    finish: Callable[[np.ndarray], np.ndarray] = lambda image: image


def nothing() -> list[Request]:
    """The request of an unconditional model."""
    return [Request("")]


def join(groups: Sequence[list[Request]]) -> list[Request]:
    """Every request of the first group with every one of the second, and so on. ValueError for different sizes."""
    joined = groups[0]
    for group in groups[1:]:
        joined = [_both(one, other) for one in joined for other in group]
    return joined


def _both(one: Request, other: Request) -> Request:
    if one.size and other.size and one.size != other.size:
        (h, w), (height, width) = one.size, other.size
        raise ValueError(f"{one.name} is {h}x{w}, {other.name} {height}x{width} pixels: they must be of one size")
    name = " ".join(filter(None, (one.name, other.name)))
    sized = one if one.size else other
    return Request(name, one.fields | other.fields, sized.size, sized.finish)


def labels(numbers: Sequence[int], n_classes: int) -> list[Request]:
    """ValueError for a class that there is not."""
    wrong = [n for n in numbers if not 0 <= n < n_classes]
    if wrong:
        raise ValueError(f"label {wrong[0]}: the model has the classes 0..{n_classes - 1}")
    return [Request(f"class {n}", {"label": np.int32(n)}) for n in numbers]


def prompts(texts: Sequence[str], tokenizer: TextTokenizer, mask: bool) -> list[Request]:
    """With `mask` the padding is marked. Texts longer than the model takes are cut."""

    def fields(text: str) -> dict[str, np.ndarray]:
        tokens, token_mask = tokenizer(text)
        return {"tokens": tokens, "token_mask": token_mask} if mask else {"tokens": tokens}

    return [Request(text, fields(text)) for text in texts]


def layouts(path: str | Path, coder: LayoutCoder) -> list[Request]:
    """A JSON file of [{"box": [x0,y0,x1,y1] in 0..1, "class": int}, ...], or a folder of them."""
    return [Request(p.stem, {"tokens": coder.encode(_objects(p))}) for p in _files(path, (".json",))]


def _objects(path: Path) -> list[dict]:
    try:
        objects = json.loads(path.read_text())
        boxes = [[float(x) for x in item["box"]] for item in objects]
        [int(item["class"]) for item in objects]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path}: a layout is a JSON list like [{{"box": [0.1, 0.2, 0.5, 0.9], "class": 3}}] '
            f"({type(error).__name__}: {error})"
        ) from None
    for box in boxes:
        if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(f"{path}: box {box} is not [x0, y0, x1, y1] in 0..1 with x0 < x1 and y0 < y1")
    return objects


def segmentations(path: str | Path, n_classes: int, multiple: int) -> list[Request]:
    """PNGs whose grey values or palette indices are classes (255 = none), one file or a folder."""
    return [_segmentation(p, n_classes, multiple) for p in _files(path)]


def _segmentation(path: Path, n_classes: int, multiple: int) -> Request:
    image = _open(path)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise ValueError(f"{path} is a picture in colours ({image.mode}); a segmentation map is grey or has a palette")
    classes = np.asarray(image).astype(np.int32)
    wrong = classes[(classes >= n_classes) & (classes != 255)]
    if wrong.size:
        raise ValueError(f"{path} has class {wrong.max()}; the model has the classes 0..{n_classes - 1} (255 = none)")
    padded = _pad(classes, multiple)
    return Request(path.stem, {"segmentation": padded}, padded.shape, _cut(classes.shape))


def low_res(path: str | Path, scale: int, multiple: int) -> list[Request]:
    """Pictures to enlarge `scale` times, one file or a folder. `multiple`: of the small picture."""
    return [_low_res(p, scale, multiple) for p in _files(path)]


def _low_res(path: Path, scale: int, multiple: int) -> Request:
    image = to_channels(_open(path), 3)
    padded = _pad(image, multiple)
    size = tuple(scale * n for n in padded.shape[:2])
    cut = _cut(tuple(scale * n for n in image.shape[:2]))
    return Request(path.stem, {"low_res": to_float(padded)}, size, cut)


def inpaintings(images: str | Path, holes: str | Path, multiple: int, feather: float = 0.0) -> list[Request]:
    """Pictures and masks (white = hole), two files or two folders with files of the same names.

    What is not hole keeps its pixels exactly; `feather` > 0 blends over that many pixels inside the hole's edge.
    """
    pictures, masks = _files(images), {p.stem: p for p in _files(holes)}
    if len(pictures) == len(masks) == 1:
        return [_inpainting(pictures[0], *masks.values(), multiple, feather)]
    missing = [p.name for p in pictures if p.stem not in masks]
    if missing:
        raise ValueError(f"no mask in {holes} for {len(missing)} of {len(pictures)} pictures: {', '.join(missing[:5])}")
    return [_inpainting(p, masks[p.stem], multiple, feather) for p in pictures]


def _inpainting(path: Path, mask_path: Path, multiple: int, feather: float) -> Request:
    image, grey = to_channels(_open(path), 3), _open(mask_path).convert("L")
    if grey.size != (image.shape[1], image.shape[0]):
        raise ValueError(f"{mask_path} is {grey.size[0]}x{grey.size[1]}, its picture {image.shape[1]}x{image.shape[0]}")
    hole = np.asarray(grey) >= 128
    if not hole.any():
        raise ValueError(f"{mask_path} marks nothing: white (255) is the hole, black stays")
    share = hole.astype(np.float32)
    if feather > 0:
        soft = Image.fromarray(np.uint8(255 * hole)).filter(ImageFilter.GaussianBlur(feather))
        # 1/2 at the hole's edge after the blur; twice what exceeds it is 0 there and 1 well inside.
        share = np.clip(2 * np.asarray(soft, np.float32) / 255 - 1, 0, 1) * share

    def finish(made: np.ndarray) -> np.ndarray:
        made = made[: image.shape[0], : image.shape[1]]
        mixed = image + share[..., None] * (made.astype(np.float32) - image)
        return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)

    padded, mask = _pad(image, multiple), _pad(hole, multiple)[..., None]
    fields = {"masked_image": to_float(np.where(mask, np.uint8(0), padded)), "mask": mask.astype(np.float32)}
    return Request(path.stem, fields, padded.shape[:2], finish)


def vectors(path: str | Path, number: int, dim: int) -> list[Request]:
    """A .npy of [dim], [k,dim] or [N,k,dim] with k <= number; missing vectors are zeros."""
    try:
        array = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a .npy file of numbers: {error}") from None
    array = array.reshape((1,) * max(3 - array.ndim, 0) + array.shape)
    if array.ndim != 3 or array.shape[2] != dim or not 1 <= array.shape[1] <= number:
        raise ValueError(f"{path} is {array.shape}; the model takes up to {number} vectors of {dim} numbers")
    array = np.pad(array, ((0, 0), (0, number - array.shape[1]), (0, 0)))
    return [Request(f"{Path(path).stem} {i}", {"vectors": a}) for i, a in enumerate(array)]


def pictures(path: str | Path, channels: int, multiple: int, size: tuple[int, int] | None = None) -> list[Request]:
    """Pictures to start from, one file or a folder: {"picture": [H,W,channels] in [-1,1]}.

    With `size` (H, W) they are resized to cover it and cut to it, at the centre; else they keep their own.
    """
    return [_picture(p, channels, multiple, size) for p in _files(path)]


def _picture(path: Path, channels: int, multiple: int, size: tuple[int, int] | None) -> Request:
    image = to_channels(_open(path), channels)
    if size:
        image = resize(image, covering(image.shape[:2], size))
        top, left = ((n - m) // 2 for n, m in zip(image.shape, size))
        image = crop(image, top, left, size)
    padded = _pad(image, multiple)
    return Request(path.stem, {"picture": to_float(padded)}, padded.shape[:2], _cut(image.shape[:2]))


def _files(path: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The file, or a folder's files of these kinds in the order of their names. ValueError where there are none."""
    path = Path(path)
    if path.is_file():
        return [path]
    files = sorted(p for p in path.glob("*") if p.suffix.lower() in suffixes)
    if not files:
        found = "is empty of them" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {found}: give a file or a folder of {', '.join(suffixes)}")
    return files


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except OSError as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from None
    return image


def _pad(array: np.ndarray, multiple: int) -> np.ndarray:
    """[H,W,...] with its edge repeated at the bottom and right up to a multiple."""
    spare = [(0, -n % multiple) for n in array.shape[:2]]
    return np.pad(array, spare + [(0, 0)] * (array.ndim - 2), mode="edge")


def _cut(size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: image[: size[0], : size[1]]
