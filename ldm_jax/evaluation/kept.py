"""What is computed once and kept in files, part by part: what was interrupted goes on, what is there is read.

folder/HASH/000000.npz, 000256.npz, ...    features {tap: float32 [n, ...]}, or pictures {"000000": uint8 [H,W,3], ...}
"""

import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from ldm_jax import progress
from ldm_jax.evaluation.features import Extractor
from ldm_jax.evaluation.picture_sets import PictureSet
from ldm_jax.process import CACHES

PART = 256  # pictures to a file
FOLDER = CACHES / "evaluation"


def features_of(
    pictures: PictureSet, extractor: Extractor, taps: tuple[str, ...], folder: str | Path = FOLDER,
    say: Callable[[str], None] = print,
) -> dict[str, np.ndarray]:  # fmt: skip
    """{tap: float32 [N, ...]} of all pictures."""
    place = Path(folder) / _key(pictures, extractor, taps)
    parts, began, computed = [], time.perf_counter(), 0
    with line_of(pictures, extractor.network.name) as line:
        for first in range(0, len(pictures), PART):
            path, last = place / f"{first:06d}.npz", min(first + PART, len(pictures))
            found = _read(path, taps)
            if found is None or any(len(array) != last - first for array in found.values()):
                found = extractor(pictures.part(first, last), taps)
                _write(path, found)
                computed += last - first
                seconds = time.perf_counter() - began
                left = seconds / computed * (len(pictures) - last)
                if not line.live:
                    say(
                        f"{pictures.name}: {last} of {len(pictures)} pictures, {computed / seconds:.3g}/s, "
                        f"{left:.0f} s left ({extractor.network.name})"
                    )
            line.show(last)
            parts.append(found)
    return {tap: np.concatenate([part[tap] for part in parts]) for tap in taps}


def line_of(pictures: PictureSet, what: str, first: int = 0) -> progress.Line:
    """A line for what is done with the pictures of a set, from number `first` on."""
    shown = f"{Path(pictures.name).name}: {what}"
    return progress.Line(shown, len(pictures), unit="pictures", first=first, active=jax.process_index() == 0)


class KeptPictures:
    """A set of pictures that are made, such as samples: each is made once. Otherwise it is the set itself."""

    def __init__(self, pictures: PictureSet, folder: str | Path = FOLDER, say: Callable[[str], None] = print):
        self._pictures, self._say, self._last = pictures, say, (-1, [])
        self._place = Path(folder) / digest(f"pictures {pictures.identity} {PART}".encode())

    def __getattr__(self, name: str):
        return getattr(self._pictures, name)

    def __len__(self) -> int:
        return len(self._pictures)

    def part(self, first: int, last: int) -> list[np.ndarray]:
        made = []
        for number in range(first // PART, -(-last // PART)):
            begin = number * PART
            made += self._whole(number)[max(first - begin, 0) : last - begin]
        return made

    def _whole(self, number: int) -> list[np.ndarray]:
        if self._last[0] != number:
            first, last = number * PART, min(number * PART + PART, len(self))
            path, names = self._place / f"{first:06d}.npz", [f"{i:06d}" for i in range(first, last)]
            found = _read(path, names)
            if found is None:
                began = time.perf_counter()
                found = dict(zip(names, self._pictures.part(first, last)))
                _write(path, found)
                speed = (last - first) / (time.perf_counter() - began)
                left = (len(self) - last) / speed
                if jax.process_index() or not progress.on_terminal():  # there a line has told this
                    self._say(f"{self.name}: {last} of {len(self)} made, {speed:.3g}/s, {left:.0f} s left")
            self._last = number, [found[name] for name in names]
        return self._last[1]


class InMemory:
    """A set of pictures that is made at once and held in memory: `images`. Otherwise it is the set itself."""

    def __init__(self, pictures: PictureSet, check: Callable[[], None] = lambda: None):
        """check: called before each part is made; what it raises stops the work."""
        self._pictures, self.images = pictures, []
        for first in range(0, len(pictures), PART):
            check()
            self.images += pictures.part(first, min(first + PART, len(pictures)))

    def __getattr__(self, name: str):
        return getattr(self._pictures, name)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, first: int, last: int) -> list[np.ndarray]:
        return self.images[first:last]


def _key(pictures: PictureSet, extractor: Extractor, taps: tuple[str, ...]) -> str:
    said = [pictures.identity, extractor.network.name, extractor.resize.name, list(taps), extractor.digest, PART]
    return digest(json.dumps(said).encode())


def digest(data: bytes) -> str:
    """A short hash, for names of folders."""
    return hashlib.sha256(data).hexdigest()[:20]


def _read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """None where there is no such part, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The file appears only when it is complete. Of several hosts the first one writes."""
    if jax.process_index():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)
