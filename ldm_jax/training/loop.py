"""The training loop of every task: data -> step -> log, evaluate, draw, save; resumes by itself.

It knows `Task` (tasks.py), not diffusion. Nothing waits for the device except at logging steps.
"""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from clu.metrics import Average
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ldm_jax import checkpoint, process, rundir
from ldm_jax.images import grid
from ldm_jax.training import logging, sharding
from ldm_jax.training.tasks import Task

Tree = Any


@dataclass(frozen=True)
class Loaders:
    """train(start_step) -> endless iterator of this host's rows of batch start_step, start_step + 1, ...;
    evaluate() -> one pass over the validation images, with "weight" [B] 1 or 0 (padding);
    pictures() -> the same for one batch, spread over the validation images. All have close()."""

    train: Callable[[int], Iterator[dict[str, np.ndarray]]]
    evaluate: Callable[[], Iterator[dict[str, np.ndarray]]]
    pictures: Callable[[], Iterator[dict[str, np.ndarray]]]


MOST_PENDING = 1000  # steps whose metrics may wait on the device for the next log


class NonFinite(RuntimeError):
    """A metric of some step is NaN or infinite."""


def run(task: Task, loaders: Loaders, frozen: Tree, config, mesh: Mesh, workdir: str | Path) -> None:
    """Trains to `config.steps`; resumes from `workdir` when it holds a checkpoint.

    `config.every` says after how many steps something happens (log, evaluate, picture, checkpoint; 0 = never), and
    `config.keep` and `config.keep_every` which checkpoints stay. The final state is always saved. Raises NonFinite
    naming the step (older checkpoints stay as they are), SaveFailed at the first log after a save that failed.
    """
    workdir = Path(workdir)
    checkpoints = checkpoint.Checkpoints(workdir, config.keep, config.keep_every)
    start = checkpoints.latest() or 0
    main = jax.process_index() == 0
    say = print if main else lambda *_, **__: None
    say(
        f"{mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, global batch {config.batch_size}, "
        f"learning rate {config.optim.learning_rate:g} (final values: nothing is scaled)"
    )

    if start >= config.steps:
        say(f"{workdir} is at step {start} of {config.steps}: nothing to do (more: --config.steps=N)")
        checkpoints.close()
        return
    batches = loaders.train(start)
    first = sharding.put(next(batches), mesh)
    frozen = _prepare_frozen(task, frozen, loaders, config, mesh, workdir, say)
    state, shardings = _first_state(task, config.seed, frozen, first, mesh, checkpoints, start)
    if main:
        checkpoint.keep_config(workdir, config.to_dict())
    if start:
        say(f"resumed {workdir} at step {start}")
    _overview(state.params, workdir, say)
    step_fn = _compile(task, state, frozen, first, shardings, mesh, say)

    writer = logging.Writer(workdir, start, active=main)
    stop, clock = _StopSignal(), _Clock()
    evaluator = _Evaluator(task, loaders, mesh, writer, say)
    pending, batch = [], first
    try:
        for step in range(start + 1, config.steps + 1):
            state, metrics = step_fn(state, frozen, batch)
            pending.append((step, metrics))
            stopping, end = stop.requested_at(step), step == config.steps
            due = {name: n > 0 and (step % n == 0 or end) for name, n in config.every.items()}
            due["checkpoint"] |= end
            if not (stopping or end):
                batch = sharding.put(next(batches), mesh)
            if any(due.values()) or stopping or len(pending) >= MOST_PENDING:
                values = _collect(pending, workdir)
                clock.stop(len(pending))
                pending = []
                values["images_per_second"] = clock.rate * config.batch_size
                writer.scalars(step, values)
                checkpoints.check()
                left = logging.duration((config.steps - step) / clock.rate)
                say(logging.line(step, config.steps, values, task.headline) + f"  left {left}", flush=True)
            if due["checkpoint"] or stopping:
                checkpoints.save(step, state)
            if stopping:
                say(f"asked to stop: step {step} is saved; the same command goes on from there", flush=True)
                break
            if due["evaluate"]:
                evaluator.metrics(step, state, frozen)
            if due["picture"]:
                evaluator.pictures(step, state, frozen)
            clock.resume()
    finally:
        stop.restore()
        checkpoints.close()
        writer.close()
        batches.close()


def _first_state(task: Task, seed: int, frozen: Tree, batch: Tree, mesh: Mesh, checkpoints, start: int):
    """The state at step `start`, restored or initialised, made on the devices where it stays; its shardings."""
    key = jax.random.key_data(jax.random.key(seed))
    shapes = jax.eval_shape(task.init, key, frozen, batch)
    shardings = sharding.tree_shardings(shapes, mesh)
    if not start:
        return jax.jit(task.init, out_shardings=shardings)(key, frozen, batch), shardings
    abstract = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)
    return checkpoints.restore(abstract, start), shardings


def _prepare_frozen(task: Task, frozen: Tree, loaders: Loaders, config, mesh, workdir: Path, say) -> Tree:
    """Frozen arrays on the mesh; the run keeps its own copy so that its directory is complete."""
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    kept = (workdir / "frozen").exists()
    multihost_utils.sync_global_devices("looked for frozen")  # before another host writes it
    if not task.keeps_frozen or kept:
        return frozen
    batches = loaders.train(0)
    frozen = task.prepare(frozen, (sharding.put(b, mesh) for b in batches), say)
    batches.close()
    # Not device_put, which of several hosts' arrays makes ones that cannot be saved.
    frozen = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(frozen)
    checkpoint.save_tree(workdir / "frozen", frozen, rundir.frozen_made_from(config, frozen))
    return frozen


def _compile(task: Task, state: Tree, frozen: Tree, batch: Tree, shardings: Tree, mesh, say):
    began = time.perf_counter()
    jitted = jax.jit(task.step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    compiled = jitted.lower(state, frozen, batch).compile()
    planned = process.planned_gib(compiled)
    size = "" if planned is None else f", about {sum(planned):.2f} GiB a device"
    say(f"train step compiled in {time.perf_counter() - began:.1f} s{size}", flush=True)
    return compiled


def _overview(params: Tree, workdir: Path, say) -> None:
    """Sizes per part on the screen, every array in parameters.txt."""
    for name, part in params.items():
        say(f"  {name}: {parameter_overview.count_parameters(part):,} parameters")
    if jax.process_index() == 0:
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        (workdir / "parameters.txt").write_text(table + "\n")


def _collect(pending: list, workdir: Path) -> dict[str, float]:
    """Means of the pending steps' metrics; raises NonFinite at the first bad one."""
    values = jax.device_get([m for _, m in pending])
    for (step, _), metrics in zip(pending, values):
        bad = [k for k, v in metrics.items() if not np.isfinite(v)]
        if bad:
            raise NonFinite(
                f"step {step}: {', '.join(bad)} is not finite. Training stopped; the checkpoints in "
                f"{workdir / 'checkpoints'} are from before. Usual remedies: a lower "
                "--config.optim.learning_rate, gradient clipping (--config.optim.clip_norm=1.0), float32."
            )
    return {k: float(np.mean([m[k] for m in values])) for k in values[0]}


def _averages(values: dict[str, jax.Array], mask: jax.Array) -> dict[str, Average]:
    """Of a batch's [B] values where mask [B]."""
    return {name: Average.from_model_output(value, mask) for name, value in values.items()}


class _Evaluator:
    """Validation metrics and pictures, each compiled once."""

    def __init__(self, task: Task, loaders: Loaders, mesh, writer: logging.Writer, say):
        self.task, self.loaders, self.mesh, self.writer, self.say = task, loaders, mesh, writer, say
        self.metrics_fn = jax.jit(task.evaluate)
        self.average_fn = jax.jit(_averages)
        self.picture_batch = None

    def metrics(self, step: int, state: Tree, frozen: Tree) -> None:
        averages: dict[str, Average] = {}
        batches = self.loaders.evaluate()
        for i, batch in enumerate(batches):
            batch = sharding.put(batch, self.mesh)
            true = batch.pop("weight") > 0  # the rest fills the last batch up
            found = self.average_fn(self.metrics_fn(state, frozen, batch, i), true)
            averages = {name: a.merge(averages[name]) if averages else a for name, a in found.items()}
            jax.block_until_ready(averages)  # one batch at a time
        batches.close()
        means = {name: float(average.compute()) for name, average in averages.items()}
        count = int(next(iter(averages.values())).count)
        self.writer.scalars(step, means, prefix="val_")
        shown = "  ".join(f"{k} {v:.4g}" for k, v in means.items())
        self.say(f"step {step}  validation ({count} images): {shown}", flush=True)

    def pictures(self, step: int, state: Tree, frozen: Tree) -> None:
        if self.picture_batch is None:
            batches = self.loaders.pictures()
            self.picture_batch = sharding.put(next(batches), self.mesh)
            batches.close()
            self.picture_batch.pop("weight")
        for name, images in self.task.pictures(state, frozen, self.picture_batch, self.mesh).items():
            self.writer.picture(step, name, grid(images, columns=self.task.columns))


class _Clock:
    """Steps per second of training alone: evaluation, pictures and checkpoints are not counted."""

    def __init__(self):
        self.rate, self.began = float("nan"), time.perf_counter()

    def stop(self, steps: int) -> None:
        """After `steps` steps since it was started."""
        self.rate, self.began = steps / (time.perf_counter() - self.began), None

    def resume(self) -> None:
        """Starts it again if it was stopped."""
        self.began = self.began or time.perf_counter()


class _StopSignal:
    """SIGTERM (preemption) asks for a checkpoint and a clean end at the next step. Several hosts agree on a later
    step; JAX handles the signal then."""

    def __init__(self):
        self.several, self.asked = jax.process_count() > 1, False
        self.previous = None if self.several else signal.signal(signal.SIGTERM, self._ask)

    def requested_at(self, step: int) -> bool:
        """Asked after every step, by every host."""
        return multihost_utils.reached_preemption_sync_point(step) if self.several else self.asked

    def _ask(self, *_):
        self.asked = True

    def restore(self) -> None:
        if not self.several:
            signal.signal(signal.SIGTERM, self.previous)
