"""What it costs to compare a checkpoint with its manifest while it is read.

    python benchmarks/restore.py --megabytes=300

A state is written once. It is then read in turns with its manifest and without: from the disk, as after a preemption
(the system is told to forget the files before each read), and from the page cache, where no disk hides the comparison.
The smallest of the times counts, because other work on the machine only adds to it. `cpu` is the processor time of all
threads: what the comparison costs where no core is idle. Resuming has a second of other work in front, on one core, as
the preparation of a run: the comparison begins before it. `sha256_first` is what was done before: first a SHA-256 of
all files, then reading. `alone` is the comparison by itself.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks import common

STEP = 1
PARTS = ("params", "ema", "mu", "nu")  # as of a training state: parameters, averages, two moments of Adam


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, config=False, repeats=8)
    p.add_argument("--megabytes", type=int, default=300, help="of the state, default 300")
    p.add_argument("--folder", help="where it is written (default: a temporary folder)")
    args = p.parse_args(argv)
    env = common.environment()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        rows = measure(Path(place), args)
    print(f"\n{common.table(rows)}")
    common.save(args, "restore", rows, env)
    return rows


def measure(place: Path, args: argparse.Namespace) -> list[common.Row]:
    import jax

    from ldm_jax import checkpoint, manifest

    state = made(args.megabytes)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    checkpoint.save_from_numpy(place / "with", STEP, state)
    checkpoint.save_tree(place / "with" / "frozen", {"first_stage": state["params"]})
    shutil.copytree(place / "with", place / "without", copy_function=os.link)  # the same bytes
    shutil.copytree(place / "with", place / "before", copy_function=os.link)
    for file in (place / "without").rglob(manifest.NAME):
        file.unlink()
    folder = place / "before" / "checkpoints" / str(STEP)
    (folder / manifest.NAME).unlink()
    (folder / manifest.NAME).write_text(json.dumps(of_version_1(folder)))

    def resumed(run: Path) -> None:
        checkpoint.compare_ahead(run)
        prepare()
        checkpoints = checkpoint.Checkpoints(run)
        jax.block_until_ready(checkpoints.restore(placed, checkpoints.latest()))
        checkpoints.close()

    reads: dict[str, tuple[float, Callable[[Path], Any]]] = {
        "a whole state, as numpy": (1.0, lambda run: checkpoint.restore_numpy(run, STEP, shapes)),
        "its averages alone": (0.25, lambda run: checkpoint.restore_numpy(run, STEP, {"ema": shapes["ema"]})),
        "frozen/": (0.25, lambda run: checkpoint.restore_tree(run / "frozen", {"first_stage": shapes["params"]})),
        "resuming": (1.0, resumed),
    }
    rows = []
    for source, first in (("disk", partial(forget, place)), ("page cache", lambda: None)):
        for name, (share, read) in reads.items():
            runs = {where: partial(read, place / where) for where in ("with", "without")}
            if name != "frozen/":
                runs["before"] = partial(as_before, place, read)
            times = smallest(runs, args.repeats, first)
            rows.append({"from": source} | row(name, args.megabytes * share, *times, name == "resuming"))
            print(common.table(rows[-1:]), flush=True)
        for name in ("with", "before"):
            compare = partial(checkpoint.problems, place / name, STEP)
            wall, cpu = smallest({"": compare}, args.repeats, first)
            of = f"alone: {'sums' if name == 'with' else 'SHA-256'}"
            rows.append(
                {"from": source, "read": of, "mb": args.megabytes, "ms": wall[""] * 1e3, "cpu_ms": cpu[""] * 1e3}
            )
    return rows


def forget(folder: Path) -> None:
    """The next read of the folder's files comes from their disk, where the system can forget them (Linux)."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)  # what is not yet on the disk is not forgotten
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def as_before(place: Path, read: Callable[[Path], Any]) -> None:
    from ldm_jax import checkpoint

    checkpoint.problems(place / "before", STEP)
    read(place / "without")


def smallest(
    runs: Mapping[str, Callable[[], Any]], repeats: int, first: Callable[[], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """(wall-clock seconds, processor seconds) of each run, the smallest of so many, which are done in turns.

    first: what is done before each run, not timed."""
    wall, cpu = (dict.fromkeys(runs, math.inf) for _ in range(2))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            first()
            began, used = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first one fills caches
                wall[name] = min(wall[name], time.perf_counter() - began)
                cpu[name] = min(cpu[name], time.process_time() - used)
    return wall, cpu


def row(name: str, megabytes: float, wall: dict[str, float], cpu: dict[str, float], prepared: bool) -> common.Row:
    """prepared: each run had `prepare` in it, which is no reading."""
    work = prepare.seconds if prepared else 0.0
    shares = [
        {where: 100 * (times[where] - times["without"]) / (times["without"] - work) for where in times}
        for times in (wall, cpu)
    ]
    return {
        "read": name, "mb": megabytes, "ms": wall["with"] * 1e3, "unchecked_ms": wall["without"] * 1e3,
        "cost_percent": shares[0]["with"], "sha256_first_percent": shares[0].get("before"),
        "cpu_ms": cpu["with"] * 1e3, "unchecked_cpu_ms": cpu["without"] * 1e3, "cpu_cost_percent": shares[1]["with"],
        "sha256_first_cpu_percent": shares[1].get("before"), "other_work_ms": work * 1e3,
    }  # fmt: skip


def made(megabytes: int) -> dict[str, dict[str, np.ndarray]]:
    """A state of layers of random numbers, which do not compress, as parameters."""
    rng, layer = np.random.default_rng(0), 2**20  # numbers: 4 MB
    count = max(megabytes * 10**6 // (4 * layer * len(PARTS)), 1)
    return {part: {f"layer_{i}": rng.standard_normal((1024, 1024), np.float32) for i in range(count)} for part in PARTS}


def of_version_1(folder: Path) -> dict:
    """The manifest that earlier versions wrote."""
    import hashlib

    from ldm_jax import checkpoint, files

    names = sorted(set(files.names(folder)) - {checkpoint.FINISHED, checkpoint.COMMITTED})
    entries = {
        name: {"size": len(data := (folder / name).read_bytes()), "sha256": hashlib.sha256(data).hexdigest()}
        for name in names
    }
    return {"version": 1, "checksum": "sha256", "files": entries}


def prepare() -> None:
    """Work of one core without JAX, about a second."""
    began = time.process_time()
    total = 0
    for i in range(12_000_000):
        total += i & 7
    prepare.seconds = min(getattr(prepare, "seconds", math.inf), time.process_time() - began)


if __name__ == "__main__":
    common.run(main)
