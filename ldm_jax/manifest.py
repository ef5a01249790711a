"""Manifests: what a folder held when it was written, so that damage shows when it is read.

manifest.json lists the relative name, the size and the SHA-256 of each file. It is written last, and it appears whole.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "manifest.json"
_VERSION = 1
_THREADS = min(16, 2 * (os.cpu_count() or 1))  # hashing and reading leave the interpreter's lock


def write(folder: str | Path, only: Iterable[str] = (), skip: Iterable[str] = ()) -> None:
    """Writes the manifest of the folder's files, or of those named in `only`; `skip`: names to leave out.

    All of them are on the disk afterwards, not only in memory.
    """
    folder = Path(folder)
    names = sorted(set(only or _names(folder)) - {NAME, *skip})
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _entry(folder / name), names))
    record = {"version": _VERSION, "checksum": "sha256", "files": dict(zip(names, found))}
    temporary = folder / f"{NAME}.tmp"
    with open(temporary, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)
    for path in {folder / name for name in names} | {folder / NAME}:
        for parent in path.relative_to(folder).parents:
            _sync(folder / parent)


def problems(folder: str | Path) -> list[str] | None:
    """What is wrong with the files of the folder, "file: what" each. [] where all is well, None without a manifest.

    Files that the manifest does not name do not count.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / NAME).read_text())
        if (record["version"], record["checksum"]) != (_VERSION, "sha256"):
            return [f"{NAME}: it is of another version"]
        expected = {str(name): (entry["size"], entry["sha256"]) for name, entry in record["files"].items()}
    except FileNotFoundError:
        return None
    except OSError as error:
        return [f"{NAME}: it cannot be read ({error.strerror})"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{NAME}: it is damaged"]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _difference(folder / name, *expected[name]), expected)
        return [f"{name}: {what}" for name, what in zip(expected, found) if what]


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _entry(path: Path) -> dict:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _difference(path: Path, size: int, digest: str) -> str:
    """How the file differs from what was written; "" if it does not."""
    try:
        with open(path, "rb") as file:
            now = os.fstat(file.fileno()).st_size
            if now != size:
                return f"it has {now} bytes, {size} were written"
            same = hashlib.file_digest(file, "sha256").hexdigest() == digest
            return "" if same else "its contents are not those that were written (another SHA-256)"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _sync(folder: Path) -> None:
    """The names in a folder are on the disk afterwards, where the system can promise it."""
    try:
        where = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(where)
    except OSError:  # not on every network file system
        pass
    finally:
        os.close(where)
