"""Threads and worker processes that make examples ahead of time.

What decodes an image leaves the interpreter's lock most of the time, so threads come first: they start at once and copy
nothing. Where there are many cores, worker processes have some threads each. Workers end with the process that started
them, however it ended. Neither changes which example is where.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grain
from absl import flags

from ldm_jax.errors import ConfigError

PATIENCE = 60  # seconds that a worker lives on after a SIGTERM
AUTOMATIC = -1  # workers: as many as suit the cores
_TOGETHER = 8  # threads that share an interpreter's lock well
_MOST = 16  # worker processes that are chosen


def cores(processes: int = 1) -> int:
    """Cores for this process, one of so many on its machine."""
    every = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every  # not on macOS
    if own < every:  # fewer than all: this process was given its own
        return own
    return max(min(every, _quota()) // processes, 1)


def _quota(path: str = "/sys/fs/cgroup/cpu.max") -> int:
    """Cores that a container may use of its machine; a large number without a limit."""
    try:
        limit, period = Path(path).read_text().split()
        return max(int(limit) // int(period), 1)
    except (OSError, ValueError):  # no such file, or "max"
        return 2**31


def plan(workers: int, cores: int, light: bool) -> tuple[int, int]:
    """(worker processes, threads in each that decode one batch together).

    workers: config.data.workers; light: examples are made in no time. ConfigError for a wrong number.
    """
    if workers < AUTOMATIC:
        raise ConfigError(f"config.data.workers={workers} must be a number of processes, 0 (threads) or -1 (automatic)")
    if light or cores <= 2:
        return max(workers, 0), 1
    if workers == AUTOMATIC:
        workers = 0 if cores < 2 * _TOGETHER else min(cores // _TOGETHER, _MOST)
    return workers, max(1, min(cores // max(workers, 1), _TOGETHER))


@dataclass(frozen=True)
class Group:
    """k -> join([of(k * size), of(k * size + 1), ...]), `size` numbers or what is left of `total`.

    With threads > 1 they are computed at the same time, by threads that all groups of this process share.
    """

    of: Callable[[int], Any]
    join: Callable[[list], Any]
    size: int
    total: int
    threads: int = 1

    def __call__(self, k: int) -> Any:
        numbers = range(k * self.size, min((k + 1) * self.size, self.total))
        each = map if self.threads == 1 else _pool(self.threads).map
        return self.join(list(each(self.of, numbers)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


def prefetch(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
    """The dataset, made by `workers` processes; 0 = by threads of this one."""
    if not workers:
        return dataset
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers refuse to start otherwise
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_begin)


def _begin(worker: int, workers: int) -> None:
    """In a new worker process. A signal to the whole group (Ctrl-C, Slurm) is for the parent, which may still want
    batches; it ends its workers itself. If it does not, the worker ends PATIENCE seconds after SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(PATIENCE))
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def _end_with_parent() -> None:
    """Linux can signal the death of a parent (PR_SET_PDEATHSIG), but of the thread that started the process, and
    Grain's does not live as long as the run. The parent process itself is known by a pipe that closes with it."""
    multiprocessing.parent_process().join()
    os._exit(0)
