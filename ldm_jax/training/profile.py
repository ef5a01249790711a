"""A profiler's trace of some steps of a run (`train.py --profile=FIRST:LAST`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ldm_jax import files
from ldm_jax.errors import UsageError

Tree = Any
FOLDER = "profile"  # in the run directory
_HOW_TO_OPEN = """profile of steps {first} to {last} in {folder}. To look at it:
    pip install xprof && xprof --logdir={folder}    (then http://localhost:8791)
    or open perfetto_trace.json.gz, below {folder}/plugins, at https://ui.perfetto.dev"""


def steps(text: str) -> tuple[int, int]:
    """ "20:22" -> (20, 22): the first and the last step. UsageError for anything else."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UsageError(f"--profile={text} must be FIRST:LAST, two steps from 1 on, such as --profile=20:22")
    return int(first), int(last)


class Profile:
    """Traces the steps `wanted` (first, last), both included; None = nothing. Of several processes each has a
    folder of its own. UsageError for a run in a bucket."""

    def __init__(self, wanted: tuple[int, int] | None, workdir: Path, say: Callable):
        if wanted and not files.is_local(workdir):
            raise UsageError(f"--profile writes on a disk of this machine, not into {workdir}: profile a local run")
        of_process = f"process_{jax.process_index()}" if jax.process_count() > 1 else ""
        self.wanted, self.folder, self.say = wanted, workdir / FOLDER / of_process, say
        self.active, self.done, self.step = False, False, 0

    def before(self, step: int, state: Tree) -> None:
        """Called before each step: starts the trace when everything before its first step is done."""
        if self.wanted and step == self.wanted[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.active = True

    def after(self, step: int, state: Tree) -> None:
        """Called after each step: ends the trace when its last step is done."""
        self.step = step
        if self.active and step == self.wanted[1]:
            jax.block_until_ready(state)
            self._end()

    def close(self) -> None:
        """Ends a trace that is still open; says when there was none although one was wanted."""
        if self.active:
            self._end()
        elif self.wanted and not self.done:
            first, last = self.wanted
            self.say(f"--profile={first}:{last}: this run had no such step; nothing is written", flush=True)

    def _end(self) -> None:
        self.active, self.done = False, True
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # training is worth more than its profile
            self.say(f"the profile could not be written: {error}", flush=True)
            return
        self.say(_HOW_TO_OPEN.format(first=self.wanted[0], last=self.step, folder=self.folder), flush=True)
