"""Manifests: what a folder held when it was written, so that damage shows when it is read.

manifest.json lists the relative name, the size and the checksum of each file. It is written last, and it appears whole.
The checksum is the SHA-256 of sums: of each sector of 512 bytes the sum of its 64-bit words, modulo 2^64. They take a
fraction of the time of a SHA-256 of everything, and they find accidents: a single bit shows for certain, and so does a
sector that is lost, old, or in the place of another one, but for one in 2^64. Words that have changed places within a
sector do not show. Manifests of version 1 have the SHA-256 of everything.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ldm_jax import files
from ldm_jax.errors import Damaged, ReadFailed

NAME = "manifest.json"
BLOCK = 2**24  # bytes, a task of one thread
# Bytes read at once. After each piece a thread waits for the interpreter's lock, 5 ms beside Python that works.
_PIECE = 2**23
_SECTOR = 512  # bytes
_SMALL = 2**16  # bytes
_THREADS = min(16, os.cpu_count() or 1)  # checksums and reading leave the interpreter's lock
_KINDS = {1: "sha256", 2: "sums"}  # by the version of the manifest


def write(folder: str | Path, only: Iterable[str] = (), skip: Iterable[str] = ()) -> None:
    """Writes the manifest of the folder's files, or of those named in `only`; `skip`: names to leave out.

    All of them are on the disk afterwards, not only in memory.
    """
    folder = files.at(folder)
    names = sorted(set(only or files.names(folder)) - {NAME, *skip})
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = {name: _size(folder / name) for name in names}
        sums = {name: _begin(pool, "sums", folder / name, sizes[name]) for name in names}
        list(pool.map(_to_disk, (folder / name for name in names)))
        found = {name: {"size": sizes[name], "sums": _joined("sums", sums[name])} for name in names}
    record = {"version": 2, "checksum": "sums", "block": BLOCK, "files": found}
    files.write(folder / NAME, json.dumps(record, indent=1) + "\n")
    _to_disk(folder / NAME)
    for path in {folder / name for name in names} | {folder / NAME}:
        for parent in path.relative_to(folder).parents:
            _to_disk(folder / parent)


def problems(folder: str | Path, only: Iterable[str] = ()) -> list[str] | None:
    """What is wrong with the files of the folder, "file: what" each. [] where all is well, None without a manifest.

    Files that the manifest does not name do not count, nor do others than those in `only`, where that is given.
    """
    return Comparison(folder, only).problems()


def few(lines: list[str]) -> str:
    """The first three lines in one, and how many more there are."""
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def damaged(folder: str | Path, wrong: list[str]) -> Damaged:
    """The error for a folder of which the run has no other. wrong: its `problems`."""
    return Damaged(f"{folder} is damaged: {few(wrong)}. Bring the folder back from a copy")


class Comparison:
    """The same, while the caller does something else: threads read the large files.

    early: what is wrong as far as it shows at once: in sizes, and in the small files, among them those that say how to
    read the others. None without a manifest.
    """

    def __init__(self, folder: str | Path, only: Iterable[str] = ()):
        self.folder, self.only = files.at(folder), set(only)
        self.early: list[str] | None = []
        self._kind, self._later = "", {}
        try:
            with files.opened(self.folder / NAME) as file:
                text = file.read()
            expected = self._expected(json.loads(text))
        except FileNotFoundError:
            self.early = None
        except ReadFailed:  # of a bucket: it says nothing about the files
            raise
        except OSError as error:
            self.early = [f"{NAME}: it cannot be read ({error.strerror})"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.early = [f"{NAME}: it is damaged"]
        else:
            pool = ThreadPoolExecutor(_THREADS)
            self.early += self._begin(pool, expected)
            pool.shutdown(wait=False)

    def problems(self) -> list[str] | None:
        """All that is wrong. Waits for the threads."""
        if self.early is None:
            return None
        later = {name: self._difference(*expected) for name, expected in self._later.items()}
        return self.early + [f"{name}: {wrong}" for name, wrong in later.items() if wrong]

    def _expected(self, record: Mapping) -> dict[str, tuple[int, str]]:
        """{name: (size, checksum)}. KeyError, TypeError or ValueError for what is no manifest."""
        self._kind = record["checksum"]
        if _KINDS.get(record["version"]) != self._kind or (self._kind == "sums" and record["block"] != BLOCK):
            self.early.append(f"{NAME}: it is of another version")
            return {}
        found = {str(name): (entry["size"], entry[self._kind]) for name, entry in record["files"].items()}
        if any(type(size) is not int or type(checksum) is not str for size, checksum in found.values()):
            raise TypeError
        return {name: of for name, of in found.items() if not self.only or name in self.only}

    def _begin(self, pool: Executor, expected: dict[str, tuple[int, str]]) -> list[str]:
        wrong = {}
        # Small files first: their verdict is waited for here.
        for name, (size, checksum) in sorted(expected.items(), key=lambda item: item[1][0]):
            path = self.folder / name
            try:
                if (now := _size(path)) != size:
                    wrong[name] = f"it has {now} bytes, {size} were written"
                else:
                    self._later[name] = checksum, _begin(pool, self._kind, path, size)
            except OSError as error:
                wrong[name] = _cannot(error)
        for name in [name for name in self._later if expected[name][0] <= _SMALL]:
            wrong[name] = self._difference(*self._later.pop(name))
        return [f"{name}: {wrong[name]}" for name in expected if wrong.get(name)]

    def _difference(self, checksum: str, sums: list[Future]) -> str:
        try:
            same = _joined(self._kind, sums) == checksum
        except OSError as error:
            return _cannot(error)
        return "" if same else "its contents are not those that were written (another checksum)"


def _cannot(error: OSError) -> str:
    return "it is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error.strerror})"


def _size(path: Path) -> int:
    if not files.is_local(path):
        with files.reaching(path):
            return path.stat().length
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return path.stat().st_size


def _begin(pool: Executor, kind: str, path: Path, size: int) -> list[Future]:
    """The parts of a file's checksum."""
    if kind == "sha256":
        return [pool.submit(_sha256, path)]
    if not files.is_local(path):
        return [pool.submit(_sums, path, 0, size)]  # one after another: a request has a price
    return [pool.submit(_sums, path, start, BLOCK) for start in range(0, size, BLOCK)]


def _joined(kind: str, parts: list[Future]) -> str:
    joined = b"".join(part.result() for part in parts)
    return (joined if kind == "sha256" else hashlib.sha256(joined).digest()).hex()


def _sha256(path: Path) -> bytes:
    with files.reaching(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sums(path: Path, start: int, size: int) -> bytes:
    """SHA-256 of the sums of each block from `start` on, in `size` bytes."""
    found, piece = b"", memoryview(bytearray(_PIECE))
    with files.reaching(path), path.open("rb") as file:
        file.seek(start)
        for _ in range(0, size, BLOCK):
            digest, left = hashlib.sha256(), BLOCK
            while left and (count := _read_into(piece[: min(left, _PIECE)], file)):
                whole = -(-count // _SECTOR) * _SECTOR
                piece[count:whole] = bytes(whole - count)
                digest.update(np.frombuffer(piece[:whole], "<u8").reshape(-1, _SECTOR // 8).sum(axis=1))
                left -= count
            found += digest.digest()
    return found


def _read_into(piece: memoryview, file) -> int:
    """Bytes that were read; clients of buckets have files with `read` alone."""
    if hasattr(file, "readinto"):
        return file.readinto(piece)
    data = file.read(len(piece))
    piece[: len(data)] = data
    return len(data)


def _to_disk(path: Path) -> None:
    """A file, or the names in a folder, are on the disk afterwards, where the system can promise it."""
    if not files.is_local(path):
        return  # what was written into a bucket is there
    try:
        where = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, on Windows
        return
    try:
        os.fsync(where)
    except OSError:  # not on every network file system
        if path.is_file():
            raise
    finally:
        os.close(where)
