"""metadata.jsonl: what is known of the images beside it, one JSON object a line (Hugging Face's imagefolder).

    {"file_name": "a.png", "text": "a cat", "label": "cat", "vectors": "clip/a.npy", ...}

"file_name"     the image; all names are relative to the folder of the metadata.jsonl
"text"          a caption
"label"         int or str; sorted unique strings are numbered
"objects"       [{"box": [x0, y0, x1, y1] in 0..1, "class": int}], flags may be added (layout.py)
"segmentation"  the name of an image file, its values are classes
"mask"          the name of an image file, 128 and above is the hole
"vectors"       a list of numbers, a list of such lists, or the name of a .npy file with an array [dim] or [n,dim];
                for large sets files, because lists stay in memory
"""

import json
from pathlib import Path

import numpy as np

from ldm_jax.errors import DataError

NAME = "metadata.jsonl"
_FILES = ("segmentation", "mask")


def read(path: Path, name: str, files: set[str]) -> list[dict]:
    """The entries of the metadata file `name`, relative to the folder `path`, as folder.Listing has them.

    files: known files below `path`, which need not be looked for. DataError with file and line for a wrong record.
    """
    prefix = name[:-len(NAME)]
    entries, first = [], None
    for number, line in enumerate((path / name).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path / name}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict) or "file_name" not in record:
            raise DataError(f'{where} needs a JSON object with "file_name", not {line[:80]}')
        record = {key: value for key, value in record.items() if value is not None}
        entry = {"name": prefix + record["file_name"]}
        entry |= {key: record[key] for key in ("text", "label", "objects") if key in record}
        entry |= {key: prefix + record[key] for key in _FILES if record.get(key)}
        if "vectors" in record:
            given = record["vectors"]
            entry["vectors"] = prefix + given if isinstance(given, str) else given
        named = [entry[key] for key in ("name", *_FILES, "vectors") if isinstance(entry.get(key), str)]
        for file in named:
            if file not in files and not (path / file).is_file():
                raise DataError(f"{where} names {file[len(prefix):]}, but {path / file} does not exist")
        if "objects" in entry:
            _check_objects(entry["objects"], where)
        if "vectors" in entry:
            width = _check_vectors(path, entry, where)
            first = first or (number, width)
            if width != first[1]:
                raise DataError(f"{where} has vectors of {width} numbers, but line {first[0]} of {first[1]}")
        entries.append(entry)
    return entries


def _check_objects(objects, where: str) -> None:
    for item in objects if isinstance(objects, list) else [objects]:
        box = item.get("box") if isinstance(item, dict) else None
        if not (isinstance(box, list) and len(box) == 4 and isinstance(item.get("class"), int)
                and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise DataError(f'{where}: an object must be {{"box": [x0, y0, x1, y1] in 0..1, "class": int}}, '
                            f"not {item}")


def _check_vectors(path: Path, entry: dict, where: str) -> int:
    """Makes a float32 array of listed vectors. Returns how many numbers a vector has."""
    given = entry["vectors"]
    try:
        vectors = read_vectors(path / given) if isinstance(given, str) else to_vectors(np.asarray(given))
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f'{where}: "vectors" must be a list of numbers, a list of lists of equal length, or the name '
                        f"of a .npy file with an array [dim] or [n,dim], not {str(given)[:80]} ({error})") from None
    if not isinstance(given, str):
        entry["vectors"] = vectors
    return vectors.shape[1]


def read_vectors(path: Path) -> np.ndarray:
    """A .npy file with an array [dim] or [n,dim] -> float32 [n,dim]. OSError or ValueError where it is none."""
    with path.open("rb") as file:
        return to_vectors(np.lib.format.read_array(file, allow_pickle=False))


def to_vectors(array: np.ndarray) -> np.ndarray:
    """[dim] or [n,dim] of any numbers -> float32 [n,dim]. ValueError for anything else, and for NaN and infinity."""
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"an array of {array.dtype}, shape {list(array.shape)}")
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite
        vectors = array.astype(np.float32).reshape(-1, array.shape[-1])
    if not np.isfinite(vectors).all():
        raise ValueError("not all numbers are finite in float32")
    return vectors
