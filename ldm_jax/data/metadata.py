"""Reads metadata.jsonl: text, label and more of the images beside it, in the conventions of Hugging Face's imagefolder.

Each line is a JSON object for one image:

    {"file_name": "a.png", "text": "a cat", "label": "cat", "vectors": "clip/a.npy"}

"file_name"     the image
"text"          a caption, or a list of captions; each pass over the data takes one of them
"label"         an integer from 0 on, or a string; strings are numbered in sorted order (folder.py)
"objects"       [{"box": [x0, y0, x1, y1] in 0..1, "class": int}], flags may be added (layout.py); or
                {"bbox": [[x, y, width, height]], "categories": [int]} in pixels, after EXIF rotation; boxes are clipped
"segmentation"  an image file; its values are classes
"mask"          an image file; values from 128 on are the hole
"vectors"       a list of numbers, a list of such lists, or a .npy file with an array [dim] or [n,dim]. Large data sets
                should use files: lists are kept in memory

Only "file_name" is required. File names are relative to the folder of the metadata.jsonl. All files must be in the
folder of the data set, also after links are followed. Any line may come from the internet: whatever it holds, the error
is a DataError.
"""

import json
import math
import os
import posixpath
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from ldm_jax.data.layout import clip_box
from ldm_jax.errors import DataError, ReadFailed
from ldm_jax.files import fetched, is_file, is_local, mistaken, opened
from ldm_jax.images import open_image

NAME = "metadata.jsonl"
CLASSES = 2**20  # classes are numbered below this
PATH = 4096  # letters of the name of a file, at most
LINE = 2**23  # letters of a line, at most
NUMBERS = 2**24  # in a .npy file, at most
_THREADS, _TOGETHER = 32, 64  # that wait for a bucket; lines that one of them reads
_TELL = 20_000  # lines of a metadata.jsonl in a bucket, after which is told how far it is
HEAD = 2**16  # bytes of a picture in a bucket, in which its size is looked for first
_BOX = '{"box": [x0, y0, x1, y1] in 0..1, "class": int}'
_PIXEL_BOXES = '{"bbox": [[x, y, width, height], ...], "categories": [int, ...]}'


def read(path: Path, name: str, files: set[str]) -> list[dict]:
    """The entries (folder.Listing) of one metadata file; `name` is its path relative to the folder `path`.

    files: names of files that are known to be in `path`. DataError for a wrong line; it names the file and the line.
    """
    where = path / name
    if not is_file(where) or mistaken(where):
        raise DataError(f"{where} cannot be read: {mistaken(where) or 'it is not a file'}")
    reader = _Reader(path, name.removesuffix(NAME), files)
    try:
        with fetched(where) as here, here.open(encoding="utf-8-sig") as file:
            lines = enumerate(iter(lambda: file.readline(LINE + 2), ""), 1)
            if is_local(path):
                return _entries(reader, where, lines)
            entries, told = [], 0
            with ThreadPoolExecutor(_THREADS) as pool:  # boxes in pixels and vectors need a request each
                for some in pool.map(partial(_entries, reader, where), _parts(lines)):
                    entries += some
                    if len(entries) >= told + _TELL:
                        told = len(entries)
                        print(f"{where}: {told} lines are read", flush=True)
            return entries
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error}") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error}") from None


def _parts(lines: Iterable) -> Iterator[list]:
    lines = iter(lines)
    while some := list(islice(lines, _TOGETHER)):
        yield some


def _entries(reader: "_Reader", where: Path, lines: Iterable[tuple[int, str]]) -> list[dict]:
    """The entries of numbered lines."""
    entries = []
    for number, line in lines:
        if line.strip():
            try:
                entries.append(reader.entry(line.removesuffix("\n")))
            except DataError as error:
                raise DataError(f"{where}, line {number}: {error}") from None
    return entries


class _Reader:
    """Turns the lines of one metadata file into entries. `prefix` is its folder: "" or "some/folder/". Threads may
    share it."""

    def __init__(self, path: Path, prefix: str, files: set[str]):
        self.path, self.prefix, self.files = path, prefix, files
        self.real_path = lru_cache(maxsize=1024)(os.path.realpath)  # one look-up for all files of a folder
        self.root = os.path.join(self.real_path(path), "")
        self.width, self.lock = None, threading.Lock()  # of the first vector that was read

    def entry(self, line: str) -> dict:
        if len(line) > LINE:
            raise DataError(f"more than {LINE} letters. Put large vectors into .npy files")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}") from None
        if not isinstance(record, dict) or "file_name" not in record:
            raise DataError(f'a JSON object with "file_name" is needed, not {_short(record)}')
        given = {key: value for key, value in record.items() if value is not None}
        entry = {"name": self._file("file_name", record["file_name"])}
        if "text" in given:
            entry["text"] = _text(given["text"])
        if "label" in given:
            entry["label"] = _label(given["label"])
        if "objects" in given:
            entry["objects"] = _objects(given["objects"], self.path / entry["name"])
        entry |= {key: self._file(key, given[key]) for key in ("segmentation", "mask") if given.get(key, "") != ""}
        if "vectors" in given:
            entry["vectors"] = self._vectors(given["vectors"])
        return entry

    def _file(self, key: str, given) -> str:
        """The name relative to `path`. DataError if it is not a file in that folder."""
        if not isinstance(given, str) or len(given) > PATH:
            raise DataError(f'"{key}" must be the name of a file, not {_short(given)}')
        inside = not os.path.isabs(given) and ".." not in given.split("/")
        # The split is a hash of the name, so an image must have one name only.
        name = posixpath.normpath(self.prefix + given) if inside else self.prefix + given
        if inside and name not in self.files and not is_file(self.path / name):
            raise DataError(f'"{key}" names {given}, but {self.path / name} does not exist')
        if not inside or not self._is_inside(os.path.join(self.path, name)):
            raise DataError(
                f'"{key}" names {given}, which leaves the folder {self.path}: names must be relative, '
                "without '..', and not links to files elsewhere"
            )
        return name

    def _is_inside(self, file: str) -> bool:
        """Whether the file is in the folder after links are followed, which a bucket does not have."""
        if not is_local(self.path):
            return True
        where = file if os.path.islink(file) else os.path.dirname(file)
        return os.path.join(self.real_path(where), "").startswith(self.root)

    def _vectors(self, given) -> np.ndarray | str:
        """Checks the vectors. Returns listed ones as an array [n,dim], others as the name of their file."""
        if isinstance(given, str):
            given = self._file("vectors", given)
        try:
            vectors = read_vectors(self.path / given) if isinstance(given, str) else to_vectors(_array(given))
        except ReadFailed:
            raise
        except ValueError as error:
            raise DataError(
                '"vectors" must be a list of numbers, a list of lists of equal length, or the name of a '
                f".npy file with an array [dim] or [n,dim], not {_short(given)} ({error})"
            ) from None
        with self.lock:
            self.width = self.width or vectors.shape[1]
        if vectors.shape[1] != self.width:
            raise DataError(f"vectors of {vectors.shape[1]} numbers, but those before have {self.width}")
        return given if isinstance(given, str) else vectors


def _short(value) -> str:
    """A value as JSON, at most 80 characters, for messages."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return f"a deep {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value) -> bool:
    """Whether it is a number that a float can hold, NaN and infinity excluded."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value.bit_length() < 1000
    return isinstance(value, float) and math.isfinite(value)


def is_class(value) -> bool:
    """Whether it is the number of a class."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < CLASSES


def is_text(value) -> bool:
    """Whether it is a string that can be written. JSON can hold half of a letter: "\\ud800"."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _text(given) -> str | tuple[str, ...]:
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(map(is_text, texts)):
        raise DataError(f'"text" must be a string, or a list of strings, not {_short(given)}')
    return tuple(given) if isinstance(given, list) else given


def _label(given) -> str | int:
    if not is_text(given) and not is_class(given):
        raise DataError(f'"label" must be a string or an integer in 0..{CLASSES - 1}, not {_short(given)}')
    return given


def _objects(given, image: Path) -> list[dict]:
    """The objects of an image; boxes in 0..1."""
    if isinstance(given, list):
        for item in given:
            if not (isinstance(item, dict) and is_box(item.get("box")) and is_class(item.get("class"))):
                raise DataError(f"an object must be {_BOX}, not {_short(item)}")
        return given
    boxes, classes = (given.get(key) if isinstance(given, dict) else None for key in ("bbox", "categories"))
    if not (isinstance(boxes, list) and isinstance(classes, list) and len(boxes) == len(classes)):
        raise DataError(f'"objects" must be [{_BOX}, ...] or {_PIXEL_BOXES} of equal length, not {_short(given)}')
    try:
        width, height = _upright_size(image)
    except ReadFailed:
        raise
    # Decoders raise nearly any exception for a broken file. Training skips such a file, so it needs no objects.
    except Exception:
        return []
    if not width * height:
        return []
    return [_object_in_pixels(box, number, width, height) for box, number in zip(boxes, classes)]


def is_box(box) -> bool:
    """Whether it is [x0, y0, x1, y1] in 0..1 with x0 < x1 and y0 < y1."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(map(is_number, box))
        and 0 <= box[0] < box[2] <= 1
        and 0 <= box[1] < box[3] <= 1
    )


def _object_in_pixels(box, number, width: int, height: int) -> dict:
    shown = None
    if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
        x, y, w, h = box
        shown = clip_box((x / width, y / height, (x + w) / width, (y + h) / height))
    if shown is None or not is_class(number):
        raise DataError(
            f"a box must be [x, y, width, height] within the image of {width}x{height} pixels, and its "
            f"category an integer in 0..{CLASSES - 1}, not {_short(box)} and {_short(number)}"
        )
    return {"box": list(shown), "class": number}


def _upright_size(image: Path) -> tuple[int, int]:
    """Width and height after EXIF rotation. The pixels are not decoded. Of a bucket the beginning of the file is read,
    and all of it only where that does not say it."""
    if not is_local(image):
        try:
            with open_image(image, HEAD) as picture:
                if picture.format in ("PNG", "JPEG", "BMP"):  # others may have it at their end
                    return _upright(picture)
        except ReadFailed:
            raise
        except Exception:  # decoders raise nearly any exception for a part of a file
            pass
    with open_image(image) as picture:
        return _upright(picture)


def _upright(picture: Image.Image) -> tuple[int, int]:
    # In a PNG, EXIF can follow the pixels. Pillow would decode them to look for it.
    known = picture.format != "PNG" or "exif" in picture.info
    turned = known and picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return picture.size[::-1] if turned else picture.size


def _array(given) -> np.ndarray:
    """A list of numbers, or a list of lists of them, as an array. ValueError for anything else."""
    rows = given if isinstance(given, list) and given and isinstance(given[0], list) else [given]
    if not all(isinstance(row, list) and len(row) == len(rows[0]) and all(map(is_number, row)) for row in rows):
        raise ValueError("not numbers, or lists of different lengths")
    return np.asarray(given, np.float64)


def read_vectors(path: Path) -> np.ndarray:
    """A .npy file with an array [dim] or [n,dim] -> float32 [n,dim]. ValueError for any other file."""
    return to_vectors(read_npy(path))


def read_npy(path: Path) -> np.ndarray:
    """The array of numbers in a .npy file, mapped. ValueError for any other file, whatever is wrong with it. ReadFailed
    where a bucket does not give it."""
    try:
        if is_local(path) and not path.is_file():
            raise ValueError("not a file")
        if is_local(path):
            array = np.lib.format.open_memmap(path, mode="r")
        else:
            array = np.lib.format.read_array(opened(path), allow_pickle=False)
        if array.size > NUMBERS:
            raise ValueError(f"{array.size} numbers; at most {NUMBERS} are read")
        return array
    except ReadFailed:
        raise
    except Exception as error:  # the header is parsed as Python, which raises many kinds
        raise ValueError(mistaken(path) or f"not a .npy file: {str(error)[:200]}") from None


def to_vectors(array: np.ndarray) -> np.ndarray:
    """Array [dim] or [n,dim] of numbers -> float32 [n,dim]. ValueError for other arrays, NaN and infinity."""
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"an array of {array.dtype}, shape {list(array.shape)}")
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite
        vectors = np.asarray(array).astype(np.float32).reshape(-1, array.shape[-1])
    if not np.isfinite(vectors).all():
        raise ValueError("not all numbers are finite in float32")
    return vectors
