"""Reads every file in a folder, with little memory: `python -m tests.hostile.child FOLDER`.

Prints a JSON line before each file, its name, and one after it: how it ended. A dead process so names the file.
"""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

from ldm_jax import images, rundir
from ldm_jax.convert.safetensors_file import read_safetensors
from ldm_jax.convert.torch_reader import read_torch, read_torch_object
from ldm_jax.data.sources import CorruptExample, FolderSource
from ldm_jax.errors import UsageError

MEMORY = 300 * 2**20  # more than the process has at its beginning


def torch_file(path: Path) -> None:
    for read in (read_torch_object, read_torch):
        read(path)


def picture(path: Path) -> None:
    for given in images.pictures("image", path):
        given.pixels("image", 3)


def folder(path: Path) -> None:
    source = FolderSource(path, "all")
    source.describe()
    source.identity()
    for i in range(len(source)):
        with contextlib.suppress(CorruptExample):
            _ = source[i]


READERS = {".run": rundir.config_of, ".ckpt": torch_file, ".safetensors": read_safetensors, ".png": picture, "": folder}


def ending(path: Path) -> str:
    try:
        READERS["" if path.is_dir() and path.suffix != ".run" else path.suffix](path)
        return "read"
    except UsageError as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        return f"ESCAPED {type(error).__name__}: {str(error)[:200]}"


def _status(field: str) -> int:
    """Bytes: "VmData" of private memory, "VmHWM" in use at most until now."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


if __name__ == "__main__":
    limit = _status("VmData") + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = _status("VmHWM")
    for path in sorted(Path(sys.argv[1]).iterdir()):
        print(json.dumps({"name": path.name}), flush=True)
        began = time.perf_counter()
        found = {"name": path.name, "ending": ending(path), "seconds": time.perf_counter() - began}
        found["memory"] = _status("VmHWM") - before
        print(json.dumps(found), flush=True)
