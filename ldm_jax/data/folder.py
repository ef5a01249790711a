"""What lies in a folder of images: file names, labels and metadata, and its split (FolderSource reads them).

The conventions are those of Hugging Face's imagefolder:
- Without metadata every image below the folder counts. Where all lie in at least two subfolders, the first
  folder of the path is the class; classes are the sorted names.
- A metadata.jsonl (any number of them, each for its own folder) holds one JSON object a line: "file_name",
  and any of "text", "label" (int or str; sorted unique strings are numbered), "objects" [{"box":
  [x0,y0,x1,y1] in 0..1, "class": int}] (flags may be added: layout.py), "segmentation" and "mask" (names of
  image files). Names are relative to it. Then the images it names are the set.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
METADATA = "metadata.jsonl"
_VALIDATION_FOLDERS = ("validation", "val", "valid", "test")


@dataclass(frozen=True)
class Listing:
    """entries: dicts with "name" (relative, '/' between) and the optional keys of an example; sorted by name.
    in_validation: True and False by the folders train/ and validation/, None where there are none."""

    path: Path
    entries: list[dict]
    in_validation: list[bool] | None
    class_names: tuple[str, ...]


def _files(path: Path) -> list[str]:
    """All files below, as sorted relative names; hidden files and folders are left out."""
    names = []
    for where, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        below = os.path.relpath(where, path).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        names += [prefix + name for name in files if not name.startswith(".")]
    return sorted(names)


def _check_objects(objects, where: str) -> None:
    for item in objects if isinstance(objects, list) else [objects]:
        box = item.get("box") if isinstance(item, dict) else None
        if not (isinstance(box, list) and len(box) == 4 and isinstance(item.get("class"), int)
                and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(f'{where}: an object must be {{"box": [x0, y0, x1, y1] in 0..1, "class": int}}, '
                             f"not {item}")


def _read_metadata(path: Path, name: str, files: set[str]) -> list[dict]:
    """The records of one metadata.jsonl, with names made relative to `path`."""
    prefix = name[:-len(METADATA)]
    entries = []
    for number, line in enumerate((path / name).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path / name}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict) or "file_name" not in record:
            raise ValueError(f'{where} needs a JSON object with "file_name", not {line[:80]}')
        entry = {"name": prefix + record["file_name"]}
        entry |= {key: record[key] for key in ("text", "label", "objects") if record.get(key) is not None}
        entry |= {key: prefix + record[key] for key in ("segmentation", "mask") if record.get(key)}
        for file in (entry[key] for key in ("name", "segmentation", "mask") if key in entry):
            if file not in files and not (path / file).is_file():
                raise ValueError(f"{where} names {file[len(prefix):]}, but {path / file} does not exist")
        if "objects" in entry:
            _check_objects(entry["objects"], where)
        entries.append(entry)
    return entries


def _number_labels(path: Path, entries: list[dict]) -> tuple[str, ...]:
    """Replaces string labels by their place among the sorted unique strings. Returns the class names."""
    missing = [entry["name"] for entry in entries if "label" not in entry]
    if missing:
        raise ValueError(f"{len(missing)} of {len(entries)} records below {path} have no label, "
                         f"{missing[0]} for one: label all or none")
    labels = {entry["label"] for entry in entries}
    if all(isinstance(label, int) and label >= 0 for label in labels):
        return tuple(str(k) for k in range(max(labels) + 1))
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels below {path} must all be strings or all be integers from 0 on, "
                         f"but there are {sorted(map(repr, labels))[:6]}")
    names = sorted(labels)
    numbers = {name: k for k, name in enumerate(names)}
    for entry in entries:
        entry["label"] = numbers[entry["label"]]
    return tuple(names)


def _validation_folder(files: list[str]) -> str | None:
    """The name of the validation folder beside train/, if both are there."""
    top = {name.split("/")[0] for name in files if "/" in name}
    return next((name for name in _VALIDATION_FOLDERS if name in top), None) if "train" in top else None


def scan(path: Path) -> Listing:
    """Lists the folder. FileNotFoundError, or ValueError that says what was found instead of images."""
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute()}" + (": it is a file" if path.exists() else ""))
    files = _files(path)
    images = [name for name in files if name.lower().endswith(EXTENSIONS)]
    if not images:
        kinds = Counter(os.path.splitext(name)[1] or "extensionless" for name in files)
        found = ", ".join(f"{count} {kind} files" for kind, count in kinds.most_common(5)) or "nothing"
        raise ValueError(f"no images ({', '.join(EXTENSIONS)}) below {path.absolute()}, only: {found}")
    metadata = [name for name in files if name.rsplit("/", 1)[-1] == METADATA]
    if metadata:
        known = set(files)
        entries = [entry for name in metadata for entry in _read_metadata(path, name, known)]
        entries.sort(key=lambda entry: entry["name"])
        if not entries:
            raise ValueError(f"{path / metadata[0]} names no image")
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
    """A number in [0,1) from the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def choose_split(listing: Listing, split: str, validation_fraction: float) -> list[int]:
    """The entries of "train", "validation" or "all". ValueError where there is none."""
    if split == "all":
        return list(range(len(listing.entries)))
    in_validation = listing.in_validation
    if in_validation is None:
        in_validation = [_hashed(entry["name"]) < validation_fraction for entry in listing.entries]
    chosen = [i for i, held_out in enumerate(in_validation) if held_out == (split == "validation")]
    if not chosen:
        raise ValueError(f"the {split} split of the {len(listing.entries)} images below {listing.path} is "
                         f"empty at validation_fraction {validation_fraction}: change it, or use split 'all'")
    return chosen
