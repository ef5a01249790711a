"""What the page asks for a model, and the request that its inputs are. No Gradio here."""

import base64
import colorsys
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from ldm_jax import build, conditions, images, provenance
from ldm_jax.data import folder, prepared, shapes
from ldm_jax.data.metadata import read_npy
from ldm_jax.data.transforms import crop, resize
from ldm_jax.diffusion.samplers import SAMPLERS, names_for
from ldm_jax.errors import Missing, RequestError
from ldm_jax.files import at, is_local, opened
from ldm_jax.request import SampleRequest, make

NUMBERS = (1, 4, 8, 16)  # of images that can be asked for
BATCH = 4  # images at a time: one program for all numbers above 1
MAX_PIXELS = 2**20  # of an image that is made, unless --max-pixels says otherwise
PAINTED = ("layout", "segmentation", "mask")  # options that are drawn with the mouse
NO_CLASS = 255  # in a map
DRAWING_BYTES = 2**26  # of a drawing that is read, at most


@dataclass(frozen=True)
class Form:
    """What a model takes on the page.

    options: of its conditions, one of each group, and the further ones; helps: what each of them is. classes: {option:
    names of the classes, by their number} of "label", "layout", "segmentation". size: (H, W) of the images as trained;
    scale: their pixels to one of the given picture along a side, f of super-resolution. guidance: whether it can be
    guided. pixels: of an image that is made, at most.
    """

    options: tuple[str, ...]
    helps: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    size: tuple[int, int]
    scale: int
    guidance: bool
    samplers: tuple[str, ...]
    timesteps: int
    steps: int
    eta: float
    pixels: int = MAX_PIXELS

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) of the picture to give for an image as trained."""
        return self.size[0] // self.scale, self.size[1] // self.scale

    def picture(self, path: str | Path | None, cut: bool) -> np.ndarray:
        """uint8 [H,W,3] of an uploaded file. cut: its centre, made as large as `picture_size`. RequestError for a file
        that is no picture, or one that is too large."""
        if not path:
            raise RequestError("image: choose a picture first")
        pixels = _opened(Path(path))
        if cut:
            # Cut before it is resized: a strip of 1x65536 pixels is never 32x2097152.
            part = covered(pixels.shape[:2], self.picture_size)
            top, left = ((n - m) // 2 for n, m in zip(pixels.shape, part))
            return resize(np.ascontiguousarray(crop(pixels, top, left, part)), self.picture_size)
        height, width = (n * self.scale for n in pixels.shape[:2])
        if height * width > self.pixels:
            raise RequestError(
                f"{Path(path).name} makes an image of {width}x{height} pixels, more than the {self.pixels} of this "
                "page: tick the box that cuts it, or make it smaller"
            )
        return pixels

    def request(self, given: Mapping[str, Any]) -> SampleRequest:
        """The request that the inputs are. given: {option: value} of `options` (a drawing is text of the page, "image"
        is uint8 [H,W,3]), "rest", the class of what is not painted, and "num", "seed", "steps", "sampler", "eta",
        "guidance". RequestError says what is missing."""
        asked = {option: self._value(option, given) for option in self.options}
        num = _whole("num", given.get("num"))
        if not 1 <= num <= max(NUMBERS):
            raise RequestError(f"num={num}: this page makes 1..{max(NUMBERS)} images at once")
        sampler = given.get("sampler")
        takes_eta = sampler in SAMPLERS and SAMPLERS[sampler].takes_eta
        asked |= dict(
            num=num, batch=BATCH, seed=_whole("seed", given.get("seed")), steps=_whole("steps", given.get("steps")),
            sampler=sampler, eta=float(given.get("eta") or 0.0) if takes_eta else 0.0,
        )  # fmt: skip
        if self.guidance and given.get("guidance") not in (None, 1):
            asked["guidance"] = float(given["guidance"])
        return make({name: value for name, value in asked.items() if value is not None})

    def _value(self, option: str, given: Mapping[str, Any]) -> Any:
        value = given.get(option)
        if option == "prompt":
            return _text(value)
        if option == "label":
            return _chosen(value, len(self.classes["label"]))
        if option == "layout":
            return _boxes(value)
        if option == "segmentation":
            return _map(value, self.size, given.get("rest", NO_CLASS), len(self.classes["segmentation"]))
        if option == "image":
            if value is None:
                raise RequestError("image: choose a picture first")
            return value
        if option == "mask":
            return _hole(value, given.get("image"))
        if option == "feather":
            return float(value) if value else None
        if option == "vectors" and value:
            return _vectors(Path(value))
        if value in (None, "") and any(option == o.name for o in _required()):
            raise RequestError(f"{option} is missing: {self.helps[option]}")
        return value or None


def form_of(config: ConfigDict, classes: str | Path | None = None, pixels: int = MAX_PIXELS) -> Form:
    """What the diffusion model of this recipe takes. classes: a file of their names, one a line; Missing where it does
    not exist. RequestError for another kind of run."""
    if config.task != "ldm":
        raise RequestError(f"a run of task {config.task!r} makes no images: the page needs a diffusion model")
    condition, frame = conditions.condition_of(config), build.frame(config)
    parts, schedule = condition.parts(), build.schedule(config)
    taken = [group[0] for group in condition.groups()] + list(condition.extras())
    helps = {option.name: option.help for option in taken}
    options = tuple(sorted(helps, key=lambda name: name == "mask"))  # the picture before its hole
    kinds = {"label": "class", "layout": "layout", "segmentation": "semantic"}
    numbers = {option: parts[kind].section.n_classes for option, kind in kinds.items() if kind in parts}
    told = _lines(classes) if classes else None
    names = {option: _names(config, option, n, told) for option, n in numbers.items()}
    sample = config.get("sample", {})
    samplers = tuple(names_for(schedule.pure_noise))
    timesteps = config.diffusion.timesteps
    return Form(
        options, helps, names, frame.image, frame.f if "superres" in parts else 1, bool(config.conditioner.drop_prob),
        samplers, timesteps, min(sample.get("steps", 50), timesteps), float(sample.get("eta", 0.0)), pixels,
    )  # fmt: skip


def files_of(wanted: SampleRequest, to: Path) -> list[Path]:
    """Writes what the command and the lines of Python name, image.png and so on, into the folder; the paths."""
    given = {name: value for name, value in wanted.asked().items() if not isinstance(value, str | int | float)}
    made = []
    for name, value in given.items():
        path = to / provenance.file_of(name)
        if name == "layout":
            path.write_text(json.dumps(value) + "\n")
        elif name == "vectors":
            np.save(path, value)
        elif isinstance(value, np.ndarray) and value.dtype == np.uint8:
            Image.fromarray(value).save(path)
        else:
            continue
        made.append(path)
    return made


def colour(k: int) -> tuple[int, int, int]:
    """A colour for class k of a map or of boxes; neighbours differ, and the first 255 are different ones."""
    hue, ring = (k * 0.61803398875) % 1.0, k // 24
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.5, 1.0)[ring % 3], (0.9, 0.65, 0.45)[(ring // 3 + k) % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _required() -> list[conditions.Option]:
    return [option for kind in conditions.base.KINDS.values() for group in kind.options for option in group]


def covered(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The largest size within (h, w) that has the proportions of `window`; at least one pixel along a side."""
    scale = min(size[0] / window[0], size[1] / window[1])
    return min(max(round(window[0] * scale), 1), size[0]), min(max(round(window[1] * scale), 1), size[1])


def _opened(path: Path) -> np.ndarray:
    """uint8 [H,W,3]; turned as its EXIF entry says."""
    try:
        with images.open_image(path) as image:
            return images.to_channels(ImageOps.exif_transpose(image), 3)
    except Exception as error:  # Pillow's decoders raise nearly any kind for a damaged file
        reason = f": {error}" if type(error) is ValueError else ""
        kinds = ", ".join(images.FORMATS)
        raise RequestError(f"{path.name} is not a picture that can be read ({kinds}){reason}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RequestError("prompt is empty: write what the picture shows")
    return value.strip()


def _chosen(value: Any, number: int) -> int:
    if value is None:
        raise RequestError("label: choose a class")
    label = _whole("label", value)
    if not 0 <= label < number:
        raise RequestError(f"label={label}: the model has the classes 0..{number - 1}")
    return label


def _boxes(value: Any) -> list[dict]:
    """The boxes of draw.js, [{"box": [x0,y0,x1,y1] in 0..1, "class": int}]."""
    try:
        found = json.loads(value or "[]")
    except (TypeError, ValueError, RecursionError):
        raise RequestError("layout: the boxes did not arrive; draw them again") from None
    if not isinstance(found, list) or not found:
        raise RequestError("layout: no box is drawn: choose a class and drag with the mouse over the field")
    return found


def _drawing(option: str, value: Any, size: tuple[int, int]) -> np.ndarray | None:
    """uint8 [H,W,4] of a canvas of size = (H, W), the text "data:image/png;base64,..."; None for one of another size,
    whose pixels are not read."""
    head = "data:image/png;base64,"
    wrong = RequestError(f"{option}: the drawing did not arrive; draw it again")
    if not isinstance(value, str) or not value.startswith(head) or len(value) > DRAWING_BYTES:
        raise wrong
    try:
        with Image.open(io.BytesIO(base64.b64decode(value[len(head) :], validate=True)), formats=("PNG",)) as image:
            return np.asarray(image.convert("RGBA")) if image.size == size[::-1] else None
    except Exception:  # Pillow's decoders raise nearly any kind
        raise wrong from None


def _hole(value: Any, image: np.ndarray | None) -> np.ndarray:
    """uint8 [H,W], 255 where the canvas is painted."""
    if image is None:
        raise RequestError("image: choose a picture first")
    drawn = _drawing("mask", value, image.shape[:2])
    if drawn is None:
        raise RequestError("mask: the drawing belongs to another picture; paint the hole again")
    hole = np.uint8(255) * (drawn[..., 3] >= 128)
    if not hole.any():
        raise RequestError("mask: nothing is painted: paint over what is to be filled")
    return hole


def _map(value: Any, size: tuple[int, int], rest: Any, number: int) -> np.ndarray:
    """uint8 [H,W], the class whose colour is nearest to that of the canvas; `rest` where nothing is painted."""
    drawn = _drawing("segmentation", value, size)
    if drawn is None:
        raise RequestError(f"segmentation: the drawing is not one of {size[1]}x{size[0]} pixels; draw it again")
    colours = np.array([colour(k) for k in range(number)], np.int32)
    rest = _whole("rest", rest)
    if rest != NO_CLASS and not 0 <= rest < number:
        raise RequestError(f"rest={rest}: the model has the classes 0..{number - 1} ({NO_CLASS} = none)")
    shown, where = np.unique(drawn.astype(np.int32).reshape(-1, 4), axis=0, return_inverse=True)
    if len(shown) > 4096:
        raise RequestError("segmentation: the drawing did not arrive; draw it again")
    nearest = np.square(shown[:, None, :3] - colours).sum(axis=-1).argmin(axis=1)
    classes = np.where(shown[:, 3] >= 128, nearest, rest).astype(np.uint8)
    return classes[where.reshape(drawn.shape[:2])]


def _vectors(path: Path) -> np.ndarray:
    try:
        return np.asarray(read_npy(path)).astype(np.float32)
    except (OSError, ValueError, TypeError):
        raise RequestError(f"vectors: {path.name} is not a .npy file of numbers") from None


def _whole(name: str, value: Any) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RequestError(f"{name}: a whole number is needed") from None
    if not math.isfinite(number) or number != int(number):
        raise RequestError(f"{name}={value}: a whole number is needed")
    return int(number)


def _lines(path: str | Path) -> tuple[str, ...]:
    try:
        with opened(at(path, "classes")) as file:
            return tuple(line.strip() for line in file.read().decode("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise Missing(f"classes={path} is no text file that can be read, the names of the classes: {error}") from None


def _names(config: ConfigDict, option: str, number: int, told: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of `number` classes: those that were told, or those of the data where they are known; else numbers."""
    found = told if told is not None else _of_data(config, option)
    return tuple(found[k] if k < len(found) else f"class {k}" for k in range(number))


def _of_data(config: ConfigDict, option: str) -> tuple[str, ...]:
    data = config.data
    if data.source == "shapes":
        return shapes.SEGMENTATION_NAMES if option == "segmentation" else shapes.CLASS_NAMES
    try:
        if data.source == "folder" and data.path and option == "label":
            path = at(data.path)
            return folder.scan(path).class_names if is_local(path) else ()  # a bucket may take minutes to list
        if data.source == "tfds" and option == "layout" and data.get("classes"):
            return _lines(data.classes)
        if data.source == "tfds":
            root = at(data.get("path") or "~/tensorflow_datasets").expanduser()
            objects = f"{prepared.names_of(data.name).objects}-label.labels.txt"
            return _lines(prepared.folder_of(data.name, root) / ("label.labels.txt" if option == "label" else objects))
    except (OSError, ValueError):  # the data is elsewhere, or its bucket does not answer
        pass
    return ()
