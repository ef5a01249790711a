"""Copies on this machine of folders in a bucket whose files are read at random places: ArrayRecord files.

    ~/.cache/ldm_jax/data/HASH/...      or in the folder that the environment variable LDM_JAX_COPIES names

They stay for the next run. The processes of one machine share them, and the work of copying.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ldm_jax import files
from ldm_jax.errors import Missing, ReadFailed
from ldm_jax.process import CACHES

PLACE = "LDM_JAX_COPIES"
ORIGIN = "origin.txt"  # in each copy: what it is a copy of
_GIB = 2**30
_THREADS = 8  # that copy files
_LEFT = 3600  # seconds without a change, after which an unfinished file belongs to nobody


def place_of(origin: Path, told: bytes) -> Path:
    """The folder of this machine for the copy of `origin`. told: what is in it, in bytes; where that has changed, it is
    another folder."""
    name = hashlib.sha256(f"{origin}\n".encode() + told).hexdigest()[:16]
    return files.local(os.environ.get(PLACE) or CACHES / "data", PLACE) / name


def of_folder(origin: Path, description: str) -> Path:
    """The folder itself, or a copy of it where it is in a bucket. description: the file that says what is in it.
    Missing where there is no room for a copy."""
    if files.is_local(origin):
        return origin
    found = files.listed(origin)
    sizes = {name: found[name].size for name in sorted(found)}
    marks = {name: found[name].mark for name in sizes}
    with files.opened(origin / description) as file:
        folder = place_of(origin, json.dumps([sizes, marks]).encode() + file.read())
    if wrong := lacking(origin, folder, sum(sizes[name] for name in _absent(folder, sizes))):
        raise Missing(wrong)
    bring(origin, folder, sizes)
    return folder


def begin(origin: Path, folder: Path) -> None:
    """Makes the folder of a copy, and says in it what it is a copy of."""
    folder.mkdir(parents=True, exist_ok=True)
    told = folder / ORIGIN
    if not told.exists():
        told.write_text(f"a copy of files in {origin}, which may be deleted while no run reads it\n")


def lacking(origin: Path, folder: Path, needed: int) -> str:
    """What to say where the disk has no room for so many bytes of a copy; "" where it has."""
    begin(origin, folder)
    free = shutil.disk_usage(folder).free
    if needed < free:
        return ""
    return (
        f"room for a copy of {origin}, which is read at random places: {needed / _GIB:.2f} GiB are needed, but "
        f"{free / _GIB:.2f} GiB are free in {folder}. Make room, or name a folder of another disk with {PLACE}=DIR, or "
        "mount the bucket with `gcsfuse BUCKET FOLDER` and give FOLDER/..."
    )


def bring(origin: Path, folder: Path, sizes: Mapping[str, int], anew: Collection[str] = ()) -> None:
    """Copies the files that `folder` does not have, and those of `anew`, which are damaged there. Else a file that is
    there is whole. ReadFailed where the bucket does not give all of a file."""
    left = [*dict.fromkeys([*_absent(folder, sizes), *anew])]
    if not left:
        return
    begin(origin, folder)
    amount = sum(sizes[name] for name in left) / _GIB
    print(f"copying {origin} to {folder}: {len(left)} files, {amount:.2f} GiB; they stay for the next run", flush=True)
    for old in folder.rglob("*.tmp"):  # of a run that was killed
        with contextlib.suppress(FileNotFoundError):  # another process has just completed it
            if time.time() - old.stat().st_mtime > _LEFT:
                old.unlink()
    random.shuffle(left)  # so that each process of a machine copies what no other one has copied yet

    def copy(name: str) -> None:
        if name not in anew and not _absent(folder, {name: sizes[name]}):
            return
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = files.temporary(target)
        try:
            files.copy_file(origin / name, temporary)
            if temporary.stat().st_size != sizes[name]:
                raise ReadFailed(
                    f"{origin / name} has {sizes[name]} bytes by its bucket, but others came: it was written anew, or "
                    "is cut short. Give the same command again"
                )
            files.settle(temporary)
            os.replace(temporary, target)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise ReadFailed(f"{origin / name} was listed, but is not there: give the same command again") from None
            raise

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(copy, left))


def _absent(folder: Path, sizes: Mapping[str, int]) -> list[str]:
    """Files that are not in the folder, or not with this size."""
    there = {name: folder / name for name in sizes}
    return [name for name, path in there.items() if not path.is_file() or path.stat().st_size != sizes[name]]
