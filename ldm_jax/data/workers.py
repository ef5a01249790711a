"""Worker processes that make batches ahead of time. They end with the process that started them, however it ended."""

import multiprocessing
import os
import signal
import threading

import grain
from absl import flags

PATIENCE = 60  # seconds that a worker lives on after a SIGTERM


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
