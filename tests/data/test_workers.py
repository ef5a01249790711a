"""Worker processes end with the process that started them, and with nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_workers_that_have_just_started_end_too(parent):
    while len(pids := workers(parent)) < 2:
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    assert gone(pids, 20)  # when they have read their modules
