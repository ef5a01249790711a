"""Sets of pictures to evaluate: a folder, an .npz, a data set as training sees it.

A set gives uint8 [H,W,3] by number, and says what it is. Nothing is dropped: a file that cannot be read is an error.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import ImageOps

from ldm_jax.data.folder import files_in
from ldm_jax.data.sources import CorruptExample, Source, fingerprint
from ldm_jax.errors import DataError, Missing, UsageError
from ldm_jax.evaluation.statistics_file import read_statistics
from ldm_jax.images import SUFFIXES, open_image, to_channels, to_uint8

ORIENTATION = 0x0112  # of EXIF; 5 and more exchange height and width
Transform = Callable[[dict, np.random.Generator], dict[str, np.ndarray]]


class PictureSet(Protocol):
    """name: for tables. settings: what it is and how it was made, for the record. identity: equal for equal sets."""

    name: str
    settings: dict[str, Any]
    identity: str

    def __len__(self) -> int: ...

    def part(self, first: int, last: int) -> list[np.ndarray]:
        """The pictures first .. last-1, uint8 [H,W,3] each."""


def three_channels(image: np.ndarray) -> np.ndarray:
    """uint8 [H,W,1] or [H,W,3] -> [H,W,3]."""
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


class FolderPictures:
    """The pictures in a folder and in its folders, also linked ones, in the order of their paths, in their own sizes.

    Pictures are the files whose names end as SUFFIXES; hidden files are none. `notes`: lines about the other files.
    Grey becomes three equal channels, 16 bits become 8, transparency is composited on white, EXIF rotation is applied:
    as in the data of a run. Raises Missing where there are no pictures, UsageError for a link to nothing and for a file
    that cannot be read, which it names; so does `part`.
    """

    def __init__(self, folder: str | Path, count: int | None = None):
        self.folder = Path(folder)
        files = sorted(self.folder / name for name in files_in(self.folder)) if self.folder.is_dir() else []
        found = [path for path in files if path.suffix.lower() in SUFFIXES]
        others = [path for path in files if path.suffix.lower() not in SUFFIXES]
        kinds = ", ".join(SUFFIXES)
        if not found:
            there = f"; it holds {len(others)} other files, {others[0].name} for one" if others else ""
            raise Missing(f"{folder} holds no pictures ({kinds}){there}")
        if broken := [path for path in found if not path.is_file()]:
            raise UsageError(f"{broken[0]} is no file, but a link to nothing. Mend it or remove it")
        self.notes = []
        if others:
            are = "file is no picture" if len(others) == 1 else "files are no pictures"
            self.notes.append(f"{folder}: {len(others)} {are} ({kinds}) and left out, {others[0].name} for one")
        self.paths = found[: _count(count, len(found), folder)]
        self.name = str(folder)
        names = [str(path.relative_to(self.folder)) for path in self.paths]
        contents = fingerprint(self.folder, names)
        self.identity = f"{contents} upright"
        with ThreadPoolExecutor(8) as pool:
            size = _sizes(pool.map(self._size, self.paths))
        self.settings = dict(folder=str(folder), pictures=len(self), size=size, files=_kinds(self.paths),
                             left_out=len(others), fingerprint=contents)  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, first: int, last: int) -> list[np.ndarray]:
        return [self._read(path) for path in self.paths[first:last]]

    def _read(self, path: Path) -> np.ndarray:
        with _named(path), open_image(path) as image:
            return to_channels(ImageOps.exif_transpose(image), 3)

    def _size(self, path: Path) -> tuple[int, int]:
        """(height, width) that its first bytes say."""
        with _named(path), open_image(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """UsageError with the name of the file in place of what the block raises."""
    try:
        yield
    except Exception as error:  # Pillow's decoders raise nearly any kind for a damaged file
        raise UsageError(f"{path} is not a picture that can be read: {error}. Mend it or remove it") from error


def _sizes(found: Iterable[tuple[int, int]]) -> str:
    """Of (height, width)s: "64x64", or how many there are and between which."""
    sizes = sorted(set(found), key=lambda size: (size[0] * size[1], size))
    smallest, largest = (f"{height}x{width}" for height, width in (sizes[0], sizes[-1]))
    return smallest if len(sizes) == 1 else f"{len(sizes)} sizes, {smallest} to {largest}"


def _kinds(paths: Sequence[Path]) -> str:
    return ", ".join(sorted({path.suffix.lower().lstrip(".") for path in paths}))


class NpzPictures:
    """The pictures of an .npz, ADM's arr_0. Missing where it holds only statistics."""

    def __init__(self, path: str | Path, count: int | None = None):
        images = read_statistics(path).pictures()
        self.images = images[: _count(count, len(images), path)]
        self.name = str(path)
        self.identity = hashlib.sha256(self.images.tobytes()).hexdigest()[:16]
        size = _sizes([self.images.shape[1:3]])
        self.settings = dict(file=str(path), pictures=len(self), size=size, fingerprint=self.identity)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, first: int, last: int) -> list[np.ndarray]:
        return list(self.images[first:last])


CHOICES = ("even", "hash")
MOST_TRIES = 20  # examples that are tried in place of one that cannot be read


class DataPictures:
    """Pictures of a data set with the preprocessing of training, but cropped at the centre and not mirrored (random
    squares, resize="square", stay random, by the picture's number).

    Which ones, where `count` is smaller than the set: `choose="even"` spreads them evenly over it, "hash" takes those
    whose numbers have the smallest SHA-256, so that a smaller count is a part of a larger one. `examples` gives all
    fields of some.

    An example that cannot be read raises DataError with its name. With `replaced`, the next one takes its place, as in
    training, and replaced(line) says so once.
    """

    def __init__(
        self, source: Source, transform: Transform, name: str, count: int | None = None, choose: str = "even",
        replaced: Callable[[str], None] | None = None,
    ):  # fmt: skip
        if choose not in CHOICES:
            raise UsageError(f"choose={choose!r} is not one of {', '.join(CHOICES)}")
        self.source, self.transform, self.name = source, transform, name
        self.count = _count(count, len(source), name)
        self.numbers = by_hash(len(source))[: self.count] if choose == "hash" else None
        self._replaced, self._named = replaced, set()
        chosen = ("" if choose == "even" else f" {choose}") + (" replaced" if replaced else "")
        self._source_identity = source.identity()
        self.identity = f"{self._source_identity} {transform!r} {self.count}{chosen}"
        self.settings = dict(data=source.describe(), pictures=self.count, preprocessing=repr(transform),
                             fingerprint=self._source_identity)  # fmt: skip
        if (side := getattr(getattr(transform, "transform", transform), "size", None)) is not None:
            self.settings["size"] = _sizes([(side, side) if isinstance(side, int) else tuple(side)])
        if self.count < len(source):
            self.settings["chosen"] = choose

    def __len__(self) -> int:
        return self.count

    def has_source_of(self, other: PictureSet | None) -> bool:
        """Whether both sets are parts of the same data."""
        return isinstance(other, DataPictures) and self._source_identity == other._source_identity

    def examples(self, first: int, last: int) -> list[dict[str, np.ndarray]]:
        """The fields of a batch, of each picture. Numbers above the count begin again at 0."""
        return [self._example(i % self.count) for i in range(first, last)]

    def _number(self, i: int) -> int:
        """That of picture i in the source."""
        return i * len(self.source) // self.count if self.numbers is None else int(self.numbers[i])

    def _example(self, i: int) -> dict[str, np.ndarray]:
        for k in range(min(MOST_TRIES, len(self.source))):
            number = (self._number(i) + k) % len(self.source)
            try:
                return self.transform(self.source[number], np.random.default_rng([number]))
            except CorruptExample as error:
                said = f"{error.name} of the {self.name} cannot be read: {error.reason}"
                if self._replaced is None:
                    raise DataError(f"{said}. Mend it or remove it") from error
                if error.name not in self._named:
                    self._named.add(error.name)
                    self._replaced(f"{said}. The next one takes its place")
        raise DataError(f"{k + 1} in a row of the {self.name} cannot be read. The last: {said}. Mend or remove them")

    @cached_property
    def identity_with_conditions(self) -> str:
        """Equal where the captions, boxes, maps and so on are also equal."""
        numbers = [self._number(i) for i in range(self.count)]
        return f"{self.identity} {self.source.conditions_identity(numbers)}"

    def part(self, first: int, last: int) -> list[np.ndarray]:
        return [three_channels(to_uint8(example["image"])) for example in self.examples(first, last)]


def by_hash(count: int) -> np.ndarray:
    """The numbers 0 .. count - 1 in the order of the SHA-256 of their decimal digits, [count] int64."""
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(count)]
    return np.array(sorted(range(count), key=digests.__getitem__), np.int64)


def _count(wanted: int | None, there: int, name: str | Path) -> int:
    if wanted is None:
        return there
    if not 1 <= wanted <= there:
        raise UsageError(f"{wanted} pictures were asked for, but {name} has {there}")
    return wanted
