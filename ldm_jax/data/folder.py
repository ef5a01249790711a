"""Lists the images of a folder, their labels and metadata, and their split. FolderSource reads what is listed.

The conventions are those of Hugging Face's imagefolder:
- Without metadata, all images in the folder and its subfolders are listed. If each of them is in a subfolder, and there
  are at least two subfolders, the first subfolder of the path is the class. Classes are numbered in sorted order.
- With metadata (metadata.jsonl, see metadata.py), only the images that it names are listed. There may be several
  metadata files, each for its own folder.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ldm_jax.data import metadata
from ldm_jax.errors import DataError
from ldm_jax.files import Listed, absolute, exists, is_local
from ldm_jax.files import listed as list_bucket

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_HIDDEN_FOLDERS = (".", "__MACOSX")
_VALIDATION_FOLDERS = ("validation", "val", "valid", "test")
REMEMBERED = 600.0  # seconds
Found = TypeVar("Found")


@dataclass(frozen=True)
class Listing:
    """entries: a dict for each image, sorted by name. "name" is its path relative to `path`, with '/'. The other keys
        are those of examples (sources.py), but with the names of files in place of maps and arrays.
    in_validation: for each entry, whether it is in the folder validation/; None if there are no such folders.
    """

    path: Path
    entries: list[dict]
    in_validation: list[bool] | None
    class_names: tuple[str, ...]


_LISTED: dict[str, tuple[float, dict[str, Listed]]] = {}  # the time, and what was found then
_SCANNED: dict[str, tuple[float, Listing]] = {}


def listed(path: Path) -> dict[str, Listed]:
    """`files.listed` of a folder in a bucket, remembered for `REMEMBERED` seconds: a start asks for it again."""
    return _remembered(_LISTED, path, _list)


def _list(path: Path) -> dict[str, Listed]:
    print(f"listing {path}: a request for every 1000 files", flush=True)
    _LISTED.clear()  # one at a time: it may be large
    return list_bucket(path)


def _remembered(found: dict[str, tuple[float, Found]], path: Path, find: Callable[[Path], Found]) -> Found:
    """find(path), or what it found `REMEMBERED` seconds ago or less."""
    before = found.get(str(path))
    if before is None or time.monotonic() - before[0] > REMEMBERED:
        value = find(path)
        found[str(path)] = before = time.monotonic(), value
    return before[1]


def forget() -> None:
    """Drops what was remembered of buckets."""
    _LISTED.clear()
    _SCANNED.clear()


def files_in(path: Path) -> list[str]:
    """The sorted relative names of all files in the folder and its subfolders, except hidden ones.

    Links to folders are followed after all other folders, and no folder is read twice. So each file is listed once, and
    a link to a parent folder does not lead to an endless loop.
    """
    if not is_local(path):
        return sorted(name for name in listed(path) if not _is_hidden(name))
    names, walked, starts = [], set(), [path]
    for start in starts:  # links to folders are appended below
        for where, folders, files in os.walk(start):
            status = os.stat(where)
            if (status.st_dev, status.st_ino) in walked:
                folders.clear()
                continue
            walked.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN_FOLDERS))
            starts += [Path(where, name) for name in folders if os.path.islink(os.path.join(where, name))]
            below = os.path.relpath(where, path).replace(os.sep, "/")
            prefix = "" if below == "." else f"{below}/"
            names += [prefix + name for name in files if not name.startswith(".")]
    return sorted(names)


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file.startswith(".") or any(folder.startswith(_HIDDEN_FOLDERS) for folder in folders)


def _number_labels(path: Path, entries: list[dict]) -> tuple[str, ...]:
    """Replaces labels that are strings by their numbers in the sorted list. Returns the names of the classes."""
    missing = [entry["name"] for entry in entries if "label" not in entry]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(entries)} records in {path} have no label, {missing[0]} for one: label all or none"
        )
    labels = {entry["label"] for entry in entries}
    if all(isinstance(label, int) for label in labels):
        return tuple(str(k) for k in range(max(labels) + 1))
    if not all(isinstance(label, str) for label in labels):
        raise DataError(
            f"labels in {path} must all be strings or all be integers from 0 on, "
            f"but there are {sorted(map(repr, labels))[:6]}"
        )
    names = sorted(labels)
    numbers = {name: k for k, name in enumerate(names)}
    for entry in entries:
        entry["label"] = numbers[entry["label"]]
    return tuple(names)


def _validation_folder(files: list[str]) -> str | None:
    """The name of the validation folder, if it and train/ exist."""
    top = {name.split("/")[0] for name in files if "/" in name}
    return next((name for name in _VALIDATION_FOLDERS if name in top), None) if "train" in top else None


def scan(path: Path) -> Listing:
    """Lists the folder. FileNotFoundError if it does not exist, DataError if it has no images.

    Of a bucket what was found is remembered for `REMEMBERED` seconds, as it takes long.
    """
    return _scan(path) if is_local(path) else _remembered(_SCANNED, path, _scan_bucket)


def _scan_bucket(path: Path) -> Listing:
    forget()
    try:
        return _scan(path)
    except BaseException:
        forget()  # what is mended is to be seen
        raise


def _scan(path: Path) -> Listing:
    if is_local(path) and not path.is_dir():
        raise FileNotFoundError(f"no folder {absolute(path)}" + (": it is a file" if path.exists() else ""))
    try:
        files = files_in(path)
    except RecursionError:
        raise DataError(f"{absolute(path)} has folders in folders, too deep to be read") from None
    if not files and not is_local(path):
        raise FileNotFoundError(f"no folder {path}" + (": it is a file, or it is empty" if exists(path) else ""))
    images = [name for name in files if name.lower().endswith(EXTENSIONS)]
    if not images:
        kinds = Counter(os.path.splitext(name)[1] or "extensionless" for name in files)
        others = ", ".join(f"{count} {kind} files" for kind, count in kinds.most_common(5)) or "nothing"
        raise DataError(f"no images ({', '.join(EXTENSIONS)}) in {absolute(path)}, only: {others}")
    described = [name for name in files if name.rsplit("/", 1)[-1] == metadata.NAME]
    if described:
        known = set(files)
        entries = [entry for name in described for entry in metadata.read(path, name, known)]
        entries.sort(key=lambda entry: entry["name"])
        if not entries:
            raise DataError(f"{path / described[0]} names no image")
    else:
        entries = [{"name": name} for name in images]
    validation = _validation_folder(files)
    if validation is not None:
        entries = [entry for entry in entries if entry["name"].split("/")[0] in ("train", validation)]
    if not any("label" in entry for entry in entries):
        depth = 0 if validation is None else 1
        parts = [entry["name"].split("/")[depth:-1] for entry in entries]
        if all(parts) and len({part[0] for part in parts}) > 1:
            for entry, part in zip(entries, parts):
                entry["label"] = part[0]
    class_names = ()
    if any("label" in entry for entry in entries):
        class_names = _number_labels(path, entries)
    in_validation = None
    if validation is not None:
        in_validation = [entry["name"].startswith(f"{validation}/") for entry in entries]
    return Listing(path, entries, in_validation, class_names)


def _hashed(name: str) -> float:
    """A number in [0,1) that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64


def choose_split(listing: Listing, split: str, validation_fraction: float) -> list[int]:
    """Indices of the entries of "train", "validation" or "all". DataError if there are none."""
    if split == "all":
        return list(range(len(listing.entries)))
    in_validation = listing.in_validation
    if in_validation is None:
        in_validation = [_hashed(entry["name"]) < validation_fraction for entry in listing.entries]
    chosen = [i for i, held_out in enumerate(in_validation) if held_out == (split == "validation")]
    if not chosen:
        raise DataError(
            f"the {split} split of the {len(listing.entries)} images in {listing.path} is empty. Change "
            f"--config.data.validation_fraction={validation_fraction}, or add images"
        )
    return chosen
