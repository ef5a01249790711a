"""The models of the page: one request at a time, one model (or few) in memory. No Gradio here."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from ldm_jax import pipeline, rundir
from ldm_jax.images import Images
from ldm_jax.pipeline import Pipeline, Progress
from ldm_jax.provenance import Model
from ldm_jax.request import SampleRequest, resolve
from ldm_jax.web.form import MAX_PIXELS, Form, form_of
from ldm_jax.web.watch import names_of

PREVIEWS = 8  # of one batch, about


class Made(NamedTuple):
    """The end of a request: its images, and the model that made them."""

    images: Images
    model: Model


class _Stopped(Exception):
    """Nobody waits for the images any more."""


class Models:
    """runs: run directories. `forms`: {run: what it takes}. keep: how many models stay in memory.

    UsageError for a run that makes no images. Parameters are read at the first request.
    """

    def __init__(
        self, runs: Sequence[str | Path], checkpoint: int | None = None, averaged: bool = True, keep: int = 1,
        classes: str | Path | None = None, pixels: int = MAX_PIXELS,
    ):  # fmt: skip
        self.configs = {str(run): rundir.config_of(run) for run in runs}
        self.forms: dict[str, Form] = {run: form_of(config, classes, pixels) for run, config in self.configs.items()}
        self._how, self._keep = dict(checkpoint=checkpoint, averaged=averaged), keep
        self._pipelines: dict[str, Pipeline] = {}
        self._lock = threading.Lock()

    def check(self, run: str, wanted: SampleRequest) -> None:
        """RequestError for what the model cannot answer, before anything is read or computed."""
        resolve(wanted, self.configs[run], names_of([*self.configs])[run], rundir.tokenizer_of(run))

    def sample(self, run: str, wanted: SampleRequest) -> Iterator[Progress | Images | Made]:
        """Progress after every step, previews between, and `Made` in the end; an error of the work is raised here.

        Requests wait for each other. The work stops at its next step when the iterator is closed.
        """
        found: SimpleQueue[Any] = SimpleQueue()
        stopped = threading.Event()
        threading.Thread(target=self._work, args=(run, wanted, found.put, stopped), daemon=True).start()
        try:
            while True:
                event = found.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Made):
                    return
        finally:
            stopped.set()

    def _work(self, run: str, wanted: SampleRequest, tell: Callable[[Any], None], stopped: threading.Event) -> None:
        def progress(done: Progress) -> None:
            if stopped.is_set():
                raise _Stopped
            tell(done)

        try:
            with self._lock:
                if stopped.is_set():
                    raise _Stopped
                pipe = self._pipeline(run)
                every = max(wanted.steps_of(pipe.config) // PREVIEWS, 1)
                images = pipe.sample(
                    wanted, on_progress=progress, on_preview=lambda _, shown: tell(shown), preview_every=every
                )
                tell(Made(images, pipe.origin))
        except BaseException as error:  # it is raised where the images are waited for
            tell(error)

    def _pipeline(self, run: str) -> Pipeline:
        """The model of the run, the one that was used last before all others."""
        if run not in self._pipelines:
            while len(self._pipelines) >= self._keep:
                self._pipelines.pop(next(iter(self._pipelines))).clear()
            self._pipelines[run] = pipeline.load(run, **self._how)
        self._pipelines[run] = self._pipelines.pop(run)
        return self._pipelines[run]
