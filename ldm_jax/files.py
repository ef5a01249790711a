"""Where files are, and how they are written. Files from elsewhere: mapped, read in bounded pieces, and called by their
name when they are something else.

A run directory, a data set, cached latents and a tokenizer may lie in a bucket of Google Cloud Storage,
gs://BUCKET/FOLDER. All that is written and read there goes through the functions of this module and the methods of
etils' epath.Path, these in a block of `reaching` or `writing`. A bucket has no folders that could be renamed and no
files that grow: what is written there appears whole, when it is complete. Everything else is on this machine.
"""

import errno
import importlib.util
import inspect
import io
import mmap
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from ldm_jax.errors import Missing, ReadFailed, ReadOutage, UsageError, WriteFailed, WriteOutage

PIECE = 2**23  # bytes that `Window` reads at once, at most
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html", b"<head")
_AWAY = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
_WORDS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UnavailableError", "DeadlineExceededError")


def at(path: str | Path, what: str = "the path") -> Path:
    """The path of what may be in a bucket: a Path of this machine, or etils' epath.Path for gs://.

    file:///folder is /folder. UsageError for other addresses, and for gs:// without a package that reads it. what: the
    option, for the message.
    """
    if isinstance(path, PurePath):
        return path if isinstance(path, Path) or not is_local(path) else Path(path)
    scheme, colon, _ = path.partition("://")
    if not colon:
        return Path(path)
    if scheme == "file":
        return Path(unquote(urlsplit(path).path))
    if scheme != "gs":
        raise UsageError(
            f"{what}: {path} is an address, and the only ones that are read here are those of gs://BUCKET/FOLDER. "
            "Mount other buckets, for example with `mount-s3 BUCKET FOLDER`, and give FOLDER/..."
        )
    if not (_has_client() or importlib.util.find_spec("tensorflow")):
        raise UsageError(f"{what}: {path} is an address, and nothing here reads gs://: pip install gcsfs, or mount the "
                         "bucket with `gcsfuse BUCKET FOLDER` and give FOLDER/...")  # fmt: skip
    from etils import epath

    return epath.Path(path)


@cache
def _has_client() -> bool:
    """Whether fsspec has a client for gs://. It keeps no listings: other hosts write there, too, and each file that is
    opened would be looked for in them."""
    import fsspec

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError:
        return False
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return True


def local(path: str | Path, what: str) -> Path:
    """The path of what must be on this machine. UsageError for an address such as gs://bucket/images. what: the option,
    for the message."""
    if "://" in str(path) and not str(path).startswith("file://"):
        raise UsageError(
            f"{what}: {path} is an address, and only a folder or file of this machine can be given here. Mount the "
            "bucket, for example with `gcsfuse BUCKET FOLDER`, and give FOLDER/..."
        )
    return at(path, what)


def is_local(path: Path) -> bool:
    """Whether a path, that `at` or Orbax gave, is on this machine."""
    return not str(path).startswith("gs://")


def absolute(path: str | Path) -> Path:
    path = at(path)
    return path.absolute() if is_local(path) else path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """WriteFailed with the file, the reason and the remedy, where the block cannot write a file of a run."""
    try:
        with reaching(path, write=True):
            yield
    except OSError as error:
        raise WriteFailed(
            f"{path} could not be written: {error.strerror or error}. {free_space(path.parent)}"
            f"{remedy(path)}, then the same command goes on from the newest checkpoint"
        ) from error


@contextmanager
def reaching(path: Path, write: bool = False) -> Iterator[None]:
    """What reads from a bucket, or writes there, is in such a block: clients raise many kinds of errors.

    ReadFailed, or WriteFailed, with the path, the reason and the remedy; ReadOutage or WriteOutage where that may pass
    by itself. FileNotFoundError where there is nothing to read. Paths of this machine keep their errors.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if is_local(path) or (isinstance(error, FileNotFoundError) and not write):
            raise
        raise _failed(path, error, write) from error


def _failed(path: Path, error: Exception, write: bool) -> UsageError:
    passes, done = may_pass(error), "written" if write else "read"
    kind = (WriteOutage if passes else WriteFailed) if write else ReadOutage if passes else ReadFailed
    remedy = "This may pass by itself: give the same command again later" if passes else (
        f"See that the bucket exists and that this machine may {'write' if write else 'read'} it: "
        "`gcloud auth application-default login` logs in"
    )  # fmt: skip
    return kind(f"{path} could not be {done}: {type(error).__name__}: {str(error)[:300]}. {remedy}")


def may_pass(error: BaseException) -> bool:
    """Whether the error of a bucket's client is that of a connection or a service that failed. Clients need not be
    installed, so their errors are known by name."""
    for name in ("code", "status"):  # gcsfs, aiohttp
        code = str(getattr(error, name, ""))
        if code.isdigit():
            return int(code) >= 500 or int(code) in (408, 429)
    package, kind = type(error).__module__.partition(".")[0], type(error).__name__
    if package in ("aiohttp", "requests", "urllib3") or kind in ("ChecksumError", "TransportError"):
        return True
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    if isinstance(error, OSError) and error.errno in _AWAY:
        return True
    # google.auth says it; TensorStore and TensorFlow have words.
    return bool(getattr(error, "retryable", False)) or any(word in f"{kind} {error}" for word in _WORDS)


def remedy(path: Path) -> str:
    """What is to be done where a file cannot be written."""
    return "Make room" if is_local(path) else "Mend that"


def free_space(folder: Path) -> str:
    """A sentence on the free space of the folder's disk; "" for a bucket, and where it cannot be asked."""
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB are free there. " if is_local(folder) else ""
    except OSError:
        return ""


def write(path: Path, data: str | bytes) -> None:
    """Writes a file, which appears when it is complete, and replaces one that was there."""
    data = data.encode() if isinstance(data, str) else data
    if not is_local(path):
        with reaching(path, write=True):
            path.write_bytes(data)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def temporary(path: Path) -> Path:
    """A name beside `path` that no other process has: containers that share a folder have the same process numbers."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


def settle(path: Path) -> None:
    """Returns when the contents of a file of this machine are on its disk, so that it can get its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def save_arrays(path: Path, arrays: dict, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file of this machine. The library makes it for its owner's eyes alone; everybody may read this."""
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata)
    path.chmod(0o644)


def remove_folder(folder: Path, missing_ok: bool = False) -> None:
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=missing_ok)
    else:
        with reaching(folder, write=True):
            folder.rmtree(missing_ok=missing_ok)


def move_folder(folder: Path, target: Path) -> None:
    """In a bucket every object is copied, through this machine, which takes time."""
    if is_local(folder):
        os.replace(folder, target)
    else:
        for name in names(folder):
            with reaching(target / name, write=True):
                (folder / name).copy(target / name)
        remove_folder(folder)


class Listed(NamedTuple):
    """What a listing tells of a file in a bucket. mark: a checksum where the client gives one, else what changes when
    the file is written anew; "" if it gives nothing."""

    size: int
    mark: str


def listed(folder: Path) -> dict[str, Listed]:
    """The files in a folder of a bucket and its subfolders: {relative name: what is told of it}. {} if there are none.

    One request for every 1000 files, none for a file. A client of TensorFlow's is asked for each.
    """
    with reaching(folder):
        if not _has_client():
            stats = {name: (folder / name).stat() for name in _walked(folder)}
            return {name: Listed(stat.length, str(stat.mtime or "")) for name, stat in stats.items()}
        import fsspec

        try:
            found = fsspec.filesystem("gcs").find(str(folder), detail=True)
        except FileNotFoundError:
            return {}
    top, out = f"{str(folder).removeprefix('gs://').rstrip('/')}/", {}
    for name, info in found.items():
        if name.startswith(top) and not name.endswith("/"):  # "/": an object in place of a folder
            marks = (info.get(key) for key in ("md5Hash", "crc32c", "generation", "mtime"))
            out[name.removeprefix(top)] = Listed(int(info.get("size") or 0), str(next(filter(None, marks), "")))
    return out


def _walked(folder: Path) -> list[str]:
    found = []
    # Left to itself, `walk` leaves out subfolders that it cannot list.
    for _, folders, own in islice(folder.walk(on_error=_not_listed), 1):
        found += [name for name in own if name]  # "": an object of the folder's own name
        for name in (name.rstrip("/") for name in folders):
            found += [f"{name}/{below}" for below in _walked(folder / name)]
    return found


def _not_listed(error: OSError) -> None:
    """A folder that cannot be listed is an error, unless there is none."""
    if not isinstance(error, FileNotFoundError):
        raise error


def names(folder: Path) -> list[str]:
    """The relative names of all files in a folder and its subfolders."""
    if is_local(folder):
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return list(listed(folder))


def copy_folder(folder: Path, target: Path) -> None:
    """Copies a small folder from or to a bucket, file by file."""
    for name in names(folder):
        with opened(folder / name) as file:
            data = file.read()
        with reaching(target, write=True):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(data)


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """A file or a small folder, on this machine: itself, or of a bucket a copy that lives as long as the block."""
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ldm_jax.") as place:
        copy = Path(place) / path.name
        if is_folder(path):
            copy_folder(path, copy)
        else:
            copy_file(path, copy)
        yield copy


def copy_file(path: Path, target: Path) -> None:
    """Copies a file from a bucket to this machine, in pieces. Errors of this machine's disk are its own."""
    with target.open("wb") as here:
        with reaching(path):
            there = path.open("rb")
        with there:
            while True:
                with reaching(path):
                    piece = there.read(PIECE)
                if not piece:
                    return
                here.write(piece)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder. In a bucket: ReadFailed where that is not known."""
    if is_local(path):
        return path.exists()
    try:
        with reaching(path):
            path.stat()  # some clients' `exists` and `is_dir` take every error for a no
    except FileNotFoundError:
        return False
    return True


def is_file(path: Path) -> bool:
    """Whether there is such a file. In a bucket a folder counts as well: to tell them apart takes further requests."""
    return path.is_file() if is_local(path) else exists(path)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder. In a bucket: ReadFailed where that is not known."""
    if is_local(path):
        return path.is_dir()
    try:
        with reaching(path):
            return bool(path.stat().is_directory)
    except FileNotFoundError:
        return False


def opened(path: Path, most: int | None = None) -> BinaryIO:
    """The file, open for reading; of a bucket its bytes, in memory. most: so many are read there.

    FileNotFoundError if there is none. ReadFailed where the bucket does not give it, which says nothing about the file.
    """
    if is_local(path):
        return path.open("rb")
    with reaching(path):
        if not _has_client():
            with path.open("rb") as file:
                return io.BytesIO(file.read() if most is None else file.read(most))
        import fsspec

        # One request. To open a file takes further ones, which ask whether it is there and what else is.
        client = fsspec.filesystem("gcs")
        options: dict[str, Any] = _one_request(type(client)) | ({} if most is None else {"start": 0, "end": most})
        try:
            return io.BytesIO(client.cat_file(str(path), **options))
        except Exception as error:
            if most is not None and str(getattr(error, "code", "")) == "416":  # a part of an empty file
                return io.BytesIO()
            raise


@cache
def _one_request(client: type) -> dict[str, int]:
    """The option with which gcsfs does not ask for the size of a file first, to read parts of it at the same time."""
    call = getattr(client, "_cat_file", client.cat_file)
    return {"concurrency": 1} if "concurrency" in inspect.signature(call).parameters else {}


def mapped(path: str | Path) -> memoryview:
    """The file's bytes, read from disk only where they are looked at. They stay valid when the file is closed.

    Missing if there is no such file. OSError or ValueError if it cannot be mapped; an empty file cannot.
    """
    path = at(path)
    if not is_file(path):
        raise Missing(f"{path} does not exist, or is not a file")
    with fetched(path) as here, open(here, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def mistaken(path: str | Path) -> str:
    """What the file is in place of the one that was wanted, and the remedy; "" if it is not a known mistake.
    ReadFailed where a bucket does not tell."""
    try:
        with opened(at(path), 512) as file:
            head = file.read(512)
    except OSError:
        return ""
    if head.startswith(_LFS):
        return "this is a git-LFS pointer: the file itself was not downloaded. Get it with `git lfs pull`"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML):
        return "this is an HTML page, not the file: the server wants a login, or the address is that of a page"
    return ""


def unreadable(path: str | Path, wanted: str, error: Exception) -> UsageError:
    """The error for a file that cannot be read. wanted: what it should be, for example "a PyTorch file"."""
    reason = mistaken(path) or (
        f"{type(error).__name__}: {str(error)[:300]}. If it should be one, it is damaged or cut short: compare its "
        "size or checksum and download it again"
    )
    return UsageError(f"{path} cannot be read as {wanted}: {reason}")


class Window:
    """Bytes as a file that is open for reading. ValueError for more than `PIECE` bytes at once.

    So a wrong length in a large file does not fill the memory.
    """

    def __init__(self, data: memoryview | bytes):
        self.data, self.at = memoryview(data), 0

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(offset + (0, self.at, len(self.data))[whence], 0)
        return self.at

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        left = max(len(self.data) - self.at, 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > PIECE:
            raise ValueError(f"one part has {size} bytes, but {PIECE} at most are read")
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def readline(self) -> bytes:
        begin, size = self.at, 128
        while True:
            size = min(2 * size, PIECE)
            self.at = begin
            piece = self.read(size)
            end = piece.find(b"\n") + 1
            if end or len(piece) < size:
                self.at = begin + (end or len(piece))
                return piece[: end or len(piece)]
            if size == PIECE:
                raise ValueError(f"a line has more than {PIECE} bytes")
