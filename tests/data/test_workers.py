"""Worker processes end with the process that started them, and with nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ldm_jax.data import batches
from ldm_jax.data import workers as made_ahead
from ldm_jax.data.sources import CorruptExample, ShapesSource, Source
from ldm_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from ldm_jax.data import batches, sources, transforms
made = batches.batches(sources.ShapesSource(32, 64), transforms.ImageTransform(32), 8, seed=0, workers=2)
for k, batch in enumerate(made):
    print("batch", k, flush=True)
    input()
"""


@pytest.fixture
def parent():
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def workers(parent) -> list[int]:
    """Its child processes that Grain started (multiprocessing has one more, which ends with its pipes)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text, command = stat.read_text(), (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == parent.pid and "spawn_main" in command:
            found.append(int(stat.parent.name))
    return found


def alive(pids) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and " Z " not in status(pid)]


def status(pid) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return " Z "


def gone(pids, within) -> bool:
    until = time.monotonic() + within
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pids)


def test_workers_outlive_signals_to_all_but_not_their_parent(parent):
    def step(k):
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == f"batch {k}\n"

    assert parent.stdout.readline() == "batch 0\n"
    step(1)  # of the second worker: both have begun
    pids = workers(parent)
    assert len(pids) == 2
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        for pid in pids:
            os.kill(pid, number)
    for k in range(2, 13):  # more than were made before
        step(k)
    parent.kill()
    assert gone(pids, 3)


class Together(Source):
    """Example i is i. Every fifth is corrupt. `meet`: so many of 2, 3 and 4 wait for each other."""

    def __init__(self, meet=1):
        self.barrier = threading.Barrier(meet)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        if i in (2, 3, 4):
            self.barrier.wait(timeout=30)
        if i % 5 == 0:
            raise CorruptExample(f"file{i}", "broken")
        return {"label": i}


def drawn(example, rng):
    return example | {"drawn": rng.random()}


def test_threads_change_nothing_and_work_at_once():
    """With 8 cores, examples are made at the same time: three of them wait for each other."""
    made = {}
    for cores, meet in ((1, 1), (8, 3)):
        iterator = batches.eval_batches(Together(meet), drawn, 20, cores=cores)
        made[cores] = list(iterator)
        iterator.close()
    assert len(made[1]) == len(made[8]) == 2
    for one, other in zip(made[1], made[8]):
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "workers, cores, expected",
    [
        (-1, 2, (0, 1)),
        (-1, 8, (0, 8)),
        (-1, 96, (12, 8)),
        (-1, 256, (16, 8)),
        (0, 96, (0, 8)),
        (4, 12, (4, 3)),
        (4, 1, (4, 1)),
    ],
)
def test_threads_and_workers_follow_the_cores(workers, cores, expected):
    assert made_ahead.plan(workers, cores, light=False) == expected
    assert made_ahead.plan(workers, cores, light=True) == (max(workers, 0), 1)
    assert ShapesSource(8, 4).light and not Together().light


def test_cores_are_those_that_the_process_was_given(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(12))
    assert made_ahead.cores(8) == 12
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(96))
    assert made_ahead.cores(8) == 12 and made_ahead.cores() == 96
    with pytest.raises(ConfigError, match=r"config\.data\.workers=-2 must be a number"):
        made_ahead.plan(-2, 8, False)


def test_workers_that_have_just_started_end_too(parent):
    while len(pids := workers(parent)) < 2:
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    assert gone(pids, 20)  # when they have read their modules
