"""Paths, which must be local. Files from elsewhere: mapped, read in bounded pieces, and called by their name when they
are something else.
"""

import mmap
from pathlib import Path

from ldm_jax.errors import Missing, UsageError

PIECE = 2**23  # bytes that `Window` reads at once, at most
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html", b"<head")


def local(path: str | Path, what: str) -> Path:
    """The path. UsageError for an address such as gs://bucket/run. what: the option, for the message."""
    if "://" in str(path):
        raise UsageError(
            f"{what}: {path} is an address, and only folders and files of this machine are read and written. Mount the "
            "bucket, for example with `gcsfuse BUCKET FOLDER`, and give FOLDER/..."
        )
    return Path(path)


def mapped(path: str | Path) -> memoryview:
    """The file's bytes, read from disk only where they are looked at. They stay valid when the file is closed.

    Missing if there is no such file. OSError or ValueError if it cannot be mapped; an empty file cannot.
    """
    if not Path(path).is_file():
        raise Missing(f"{path} does not exist, or is not a file")
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def mistaken(path: str | Path) -> str:
    """What the file is in place of the one that was wanted, and the remedy; "" if it is not a known mistake."""
    try:
        with open(path, "rb") as file:
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
