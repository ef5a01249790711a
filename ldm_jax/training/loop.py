"""The training loop of every task: data -> step -> log, evaluate, draw, save; resumes by itself, stops when asked.

It knows `Task` (tasks.py), not diffusion. The host is a few steps ahead of the device and waits for nothing else but
at logging steps. When and how a run stops: stopping.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from clu import parameter_overview
from clu.metrics import Average
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.stages import Compiled

from ldm_jax import checkpoint, config_file, files, process, progress, rundir
from ldm_jax.errors import ReadFailed, SaveFailed, WriteFailed
from ldm_jax.images import grid
from ldm_jax.programs import Call, CompiledPrograms
from ldm_jax.training import ahead, logging, nonfinite, sharding, snapshots
from ldm_jax.training.nonfinite import NonFinite
from ldm_jax.training.profile import Profile
from ldm_jax.training.stopping import Stop, Stopped
from ldm_jax.training.tasks import Check, Task
from ldm_jax.training.watchdog import Watchdog

Tree = Any


@dataclass(frozen=True)
class Loaders:
    """train(start_step) -> endless iterator of this host's rows of batch start_step, start_step + 1, ...;
    evaluate() -> one pass over the validation images, with "weight" [B] 1 or 0 (padding);
    pictures() -> the same for one batch, spread over the validation images. All have close().
    evaluations: number of batches of evaluate(), 0 = not known.
    shapes: {field: shape} of what the task reads of a global batch of evaluate() and pictures(); None = not known, then
    their programs are compiled when they are first needed."""

    train: Callable[[int], Iterator[dict[str, np.ndarray]]]
    evaluate: Callable[[], Iterator[dict[str, np.ndarray]]]
    pictures: Callable[[], Iterator[dict[str, np.ndarray]]]
    evaluations: int = 0
    shapes: dict[str, jax.ShapeDtypeStruct] | None = None


WORK = ("log", "evaluate", "picture", "metrics", "checkpoint")  # options of config.every that are numbers of steps
SHOWN = ("FID", "FD-", "rFID", "rFD-", "PSNR", "precision", "recall")  # metrics of the model that are printed
MOST_PENDING = 1000  # steps whose metrics may wait on the device for the next log
MOST_AHEAD = 2  # steps that the host is ahead of the device: enough to keep it busy, few to wait for at a stop
TELL_WAITING = 0.05  # the progress line tells a larger share of the time that the device waited for data
STEP = "training step"  # the name of its program
STEP_REMEDY = (  # where a device has too little memory for the training step
    "a smaller --config.batch_size, more parts of it (--config.optim.accumulate), arrays split over more devices "
    "(--config.mesh.fsdp), or --config.dtype=bfloat16"
)


class Measure(Protocol):
    """Numbers and pictures of the model at a step. weights: as Task.weights gives them.

    held: bytes of a device that it takes all the time.
    """

    @property
    def held(self) -> int: ...

    def __call__(
        self, step: int, weights: dict[str, tuple[Tree, Tree]], check: Check
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """check: called between parts of the work."""

    def compile(self, weights: dict[str, tuple[Tree, Tree]]) -> list[Compiled]:
        """The programs for weights of these shapes."""

    def taken(self, weights: dict[str, tuple[Tree, Tree]]) -> int:
        """Bytes of a device that it takes while it measures weights of these shapes, without those of its programs."""


def run(
    task: Task, loaders: Loaders, frozen: Tree, config, mesh: Mesh, workdir: str | Path, stop: Stop | None = None,
    measure: Measure | None = None, begin: Callable[[Tree], Tree] | None = None, profile: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Trains to `config.steps`; resumes from `workdir` when it holds a checkpoint.

    `config.every` says after how many steps something happens (log, evaluate, picture, metrics, checkpoint; 0 = never),
    and `config.keep` and `config.keep_every` which checkpoints stay. The final state is always saved. `measure` is
    needed for config.every.metrics; `begin` changes the initialised state of a new run. `profile`: the first and
    the last step of a profiler's trace. Raises Stopped when `stop` was
    asked for and all is saved, NonFinite with the step (older checkpoints stay as they are), SaveFailed at the first
    log after a save that failed, and WriteFailed for another file, or ReadFailed for data in a bucket, when the state
    is saved (on one host; on several, nothing is).
    """
    workdir, stop = files.at(workdir), stop or Stop()
    step_function = nonfinite.step_of(task.step, config.on_nonfinite, config.noise_seed)
    collector = nonfinite.Collector(workdir, config.nonfinite_limit)
    checkpoints = checkpoint.Checkpoints(workdir, config.keep, config.keep_every)
    start = checkpoints.latest() or 0
    kept = snapshots.Snapshots(workdir, config, start)
    main = jax.process_index() == 0
    say = print if main else lambda *_, **__: None
    say(
        f"{mesh.size} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, global batch {config.batch_size}, "
        f"learning rate {config.optim.learning_rate:g} (final values: nothing is scaled)"
    )

    missed = _missed(task, config, workdir, start, kept)
    if start >= config.steps and not any(missed.values()):
        say(f"{workdir} is at step {start} of {config.steps}: nothing to do (more: --config.steps=N)")
        checkpoints.close()
        return
    batches = loaders.train(start)
    first = sharding.put(next(batches), mesh)
    frozen = _prepare_frozen(task, frozen, loaders, config, mesh, workdir, say)
    state, shardings = _first_state(task, config.seed, frozen, first, mesh, checkpoints, start, begin)
    if main:
        config_file.save(workdir, config.to_dict())
    if start:
        say(f"resumed {workdir} at step {start}")
    _overview(state.params, workdir, say)

    writer = logging.Writer(workdir, start, active=main)
    watchdog = Watchdog(config.watchdog_minutes)
    evaluator = _Evaluator(task, loaders, mesh, writer, say, stop, watchdog, measure)
    due = {name: config.every[name] > 0 for name in WORK}
    if start >= config.steps:
        step_function, due = None, missed
    step_fn = _compile(step_function, state, frozen, first, shardings, mesh, evaluator, due, say)
    if any(missed.values()):
        names = " and ".join(name for name, value in missed.items() if value)
        say(f"step {start} was saved before its work was complete ({names}): this is done now", flush=True)
        if missed["snapshot"]:
            kept.write(start, state)
        evaluator.run(missed, start, state, frozen)
    clock, saves = _Clock(stop.began), _Saves(checkpoints, start, config.every.checkpoint_minutes)
    line = progress.Line("step", config.steps, unit="steps", first=start, active=main)
    report = _Report(task, config, collector, clock, writer, say, line)
    profiler = Profile(profile, workdir, say)
    batch = first

    def end(step: int, state: Tree) -> str:
        """All that a stop after `step` leaves to do; the last words."""
        report.sum_up()
        saves.save(step, state)
        checkpoints.wait()
        report.write(step)
        writer.close()
        line.close()
        return f"asked to stop: step {step} is saved; the same command goes on from there"

    stop.begin()
    watchdog.renew()
    try:
        for step in range(start + 1, config.steps + 1):
            profiler.before(step, state)
            state, metrics = step_fn(state, frozen, batch)
            profiler.after(step, state)
            report.add(step, metrics)
            watchdog.renew()
            stopping, last = stop.reached(), step == config.steps
            guard = partial(stop.guard, partial(end, step, state))  # while the run waits with this state in hand
            due = {name: _is_due(config.every[name], step, last) for name in WORK} | {
                "snapshot": kept.is_due(step, last)
            }
            if not (stopping or last):
                with guard(), clock.waiting(metrics):
                    batch = sharding.put(next(batches), mesh)
            if any(due.values()) or stopping or last or report.is_long:
                report.sum_up()
                if not stopping:  # then it is written after the save
                    report.write(step)
                checkpoints.check()
                watchdog.renew()
                due["checkpoint"] |= last or saves.is_old()
            if due["checkpoint"] or stopping:
                saves.save(step, state)
            if due["snapshot"]:
                kept.write(step, state)
            if not stopping:
                try:
                    with guard():
                        evaluator.run(due, step, state, frozen)
                except Stopped:
                    stopping = True
            if stopping:
                say(end(step, state), flush=True)
                raise Stopped
            clock.resume()
    except (WriteFailed, ReadFailed) as error:
        if jax.process_count() > 1:  # others would have to save with it
            raise
        report.sum_up()  # NonFinite: what the steps have made is not to be saved
        try:
            saves.save(step, state)
            checkpoints.wait()
        except (SaveFailed, WriteFailed, ReadFailed) as failed:
            raise type(error)(f"{error}.\n{failed}") from failed
        if isinstance(error, ReadFailed):  # WriteFailed says it
            with suppress(WriteFailed):
                report.write(step)
            raise type(error)(f"{error}. Step {step} is saved: the same command goes on from there") from error
        raise
    except NonFinite as error:
        state = guard = None  # makes room for another state
        watchdog.close()
        told = str(error)
        with stop.guard(lambda: told, code=1):  # the same command comes to this step again
            where = _modules(task, loaders, config, first, frozen, step_fn, mesh, checkpoints, error.step, say, begin)
        raise NonFinite(error.step, f"{told}\n{where}") from None
    finally:
        stop.close()
        watchdog.close()
        with ExitStack() as closing:  # an error of one does not keep the others open
            closing.callback(profiler.close)
            closing.callback(batches.close)
            closing.callback(writer.close)
            closing.callback(line.close)
            closing.callback(checkpoints.close)


def _is_due(every: int, step: int, last: bool) -> bool:
    """Whether something happens after `step`, the last one or not. every: number of steps, 0 = never."""
    return every > 0 and (step % every == 0 or last)


def _missed(task: Task, config, workdir: Path, start: int, kept: snapshots.Snapshots) -> dict[str, bool]:
    """Which work was due at `start`, where the run goes on, and is not there: the process ended before it was done."""
    there = {
        "evaluate": logging.has_numbers(workdir, start, logging.VALIDATION),
        "picture": logging.has_pictures(workdir, start),
        "metrics": logging.has_numbers(workdir, start, logging.METRICS),
    }
    last = start >= config.steps
    missed = {name: start > 0 and not done and _is_due(config.every[name], start, last) for name, done in there.items()}
    missed["picture"] &= task.draws
    missed["snapshot"] = kept.is_missed(start, last)
    if jax.process_count() > 1:  # the first host writes those files, and may do so meanwhile
        missed = {name: bool(value) for name, value in multihost_utils.broadcast_one_to_all(missed).items()}
    return missed


def _modules(task, loaders, config, first, frozen, step_fn, mesh, checkpoints, bad: int, say, begin) -> str:
    """Tells of which modules the gradient is not finite at step `bad`, and a save that has failed. The steps since the
    newest checkpoint are done again for that, if they are not too many."""
    failed = ""
    try:
        checkpoints.wait()
    except SaveFailed as error:
        failed = f"{error}.\n"
    start = checkpoints.latest() or 0
    if bad - start > nonfinite.REPLAY:
        return (
            f"{failed}Which modules have such gradients is told when a checkpoint is of at most "
            f"{nonfinite.REPLAY} steps before (--config.every.checkpoint); the newest one is of step {start}."
        )
    say(f"step {bad} is not finite; steps {start + 1} to {bad} are done again to see where", flush=True)
    state, _ = _first_state(task, config.seed, frozen, first, mesh, checkpoints, start, begin)
    batches = loaders.train(start)
    for _ in range(start + 1, bad):
        state, _ = step_fn(state, frozen, sharding.put(next(batches), mesh))
    with jax.set_mesh(mesh):
        names, count = nonfinite.modules(task, state, frozen, sharding.put(next(batches), mesh), config.noise_seed)
    batches.close()
    if not names:
        return (
            f"{failed}The gradients of all {count} modules are finite at step {bad}: its update made the parameters "
            "too large."
        )
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    bad_ones = f"{', '.join(names[:8])}{more}"
    return f"{failed}Gradients that are not finite, of {len(names)} of {count} modules: {bad_ones}."


def _first_state(task: Task, seed: int, frozen: Tree, batch: Tree, mesh: Mesh, checkpoints, start: int, begin):
    """The state at step `start`, restored or initialised, made on the devices where it stays; its shardings."""
    key = jax.random.key_data(jax.random.key(seed))
    shapes = jax.eval_shape(task.init, key, frozen, batch)
    shardings = sharding.tree_shardings(shapes, mesh)
    if not start:
        state = jax.jit(task.init, out_shardings=shardings)(key, frozen, batch)
        return begin(state) if begin else state, shardings
    abstract = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)
    return checkpoints.restore(abstract, start), shardings


def _prepare_frozen(task: Task, frozen: Tree, loaders: Loaders, config, mesh, workdir: Path, say) -> Tree:
    """Frozen arrays on the mesh, large ones split like parameters; the run keeps its own copy so that its directory is
    complete."""
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    kept = checkpoint.has_tree(workdir / "frozen")
    multihost_utils.sync_global_devices("looked for frozen")  # before another host writes it
    if not task.keeps_frozen or kept:
        return _split(frozen, mesh)
    batches = loaders.train(0)
    frozen = task.prepare(frozen, (sharding.put(b, mesh) for b in batches), say)
    batches.close()
    # Not device_put, which of several hosts' arrays makes ones that cannot be saved.
    frozen = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(frozen)
    checkpoint.save_tree(workdir / "frozen", frozen, rundir.frozen_made_from(config, frozen))
    return _split(frozen, mesh)


def _split(frozen: Tree, mesh: Mesh) -> Tree:
    """The same arrays where parameters of their shapes are."""
    if mesh.shape["fsdp"] == 1:
        return frozen
    return jax.jit(lambda x: x, out_shardings=sharding.tree_shardings(frozen, mesh))(frozen)


def _compile(
    step: nonfinite.Step | None, state: Tree, frozen: Tree, batch: Tree, shardings: Tree, mesh,
    evaluator: "_Evaluator", due: dict[str, bool], say,
) -> Compiled | None:  # fmt: skip
    """The program of the training step, None = there is none to do; those of the work that will be due stay with the
    evaluator."""

    def compile_step() -> list[Compiled]:
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
        with jax.set_mesh(mesh):
            return [jitted.lower(state, frozen, batch).compile()]

    parts = [] if step is None else [ahead.Part(STEP, compile_step, STEP_REMEDY)]
    parts += evaluator.parts(due, sharding.placed(state, shardings), sharding.shapes_of(frozen))
    held = sharding.bytes_of((state, frozen, batch)) + evaluator.held
    programs = ahead.compile_all(parts, held, process.memory_limit(mesh.local_devices), say)
    return None if step is None else programs[STEP][0]


def _overview(params: Tree, workdir: Path, say) -> None:
    """Sizes per part on the screen, every array in parameters.txt."""
    for name, part in params.items():
        say(f"  {name}: {parameter_overview.count_parameters(part):,} parameters")
    if jax.process_index() == 0:
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        with files.writing(workdir / "parameters.txt"):
            (workdir / "parameters.txt").write_text(table + "\n")


def _evaluate(task: Task, state: Tree, frozen: Tree, batch: Tree, i: jax.Array) -> dict[str, Average]:
    """Of the samples whose "weight" is not 0; the others fill the last batch up."""
    given = {name: value for name, value in batch.items() if name != "weight"}
    values = task.evaluate(state, frozen, given, i)
    return {name: Average.from_model_output(value, batch["weight"] > 0) for name, value in values.items()}


class _Evaluator:
    """Validation, pictures and metrics of the model; the programs of each are compiled once, by its `parts` or later. A
    stop interrupts them: Stopped."""

    def __init__(
        self, task: Task, loaders: Loaders, mesh, writer: logging.Writer, say, stop: Stop, watchdog: Watchdog,
        measure: Measure | None,
    ):  # fmt: skip
        self.task, self.loaders, self.mesh, self.writer, self.say = task, loaders, mesh, writer, say
        self.stop, self.watchdog, self.measure = stop, watchdog, measure
        self.programs = CompiledPrograms(precision=jax.config.jax_default_matmul_precision)
        self.picture_rows: dict[str, np.ndarray] | None = None  # this host's of the batch that is drawn, on the host
        self.is_main = jax.process_index() == 0

    @property
    def held(self) -> int:
        """Bytes of a device that are taken all the time."""
        return 0 if self.measure is None else self.measure.held

    def parts(self, due: dict[str, bool], state: Tree, frozen: Tree) -> list[ahead.Part]:
        """The programs of what is due, as `run` does it. state, frozen: shapes with their places."""
        parts: list[ahead.Part] = []
        batch = self._batch_shapes()
        size = sharding.bytes_of(batch)
        if due.get("evaluate") and batch:
            remedy = "a smaller --config.batch_size, or no evaluation (--config.every.evaluate=0)"
            make = partial(self._compile_evaluation, state, frozen, batch)
            parts.append(ahead.Part("evaluation", make, remedy, size))
        if due.get("picture") and batch and self.task.draws:
            fewer = self.task.fewer_pictures and f"fewer pictures ({self.task.fewer_pictures}), or "
            given = {name: x for name, x in batch.items() if name != "weight"}
            make = partial(self.task.compile_pictures, state, frozen, given, self.mesh)
            parts.append(ahead.Part("pictures", make, f"{fewer}no pictures (--config.every.picture=0)", size))
        if due.get("metrics"):
            remedy = "a smaller --config.metrics.batch, or no metrics (--config.every.metrics=0)"
            weights = self.task.weights(state, frozen)
            make = partial(self.measure.compile, weights)
            parts.append(ahead.Part("metrics", make, remedy, self.measure.taken(weights)))
        return parts

    def _batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of what `_put` makes; {} where it is not known."""
        shapes = self.loaders.shapes
        if shapes is None:
            return {}
        shapes = shapes | {"weight": jax.ShapeDtypeStruct(next(iter(shapes.values())).shape[:1], np.float32)}
        return sharding.placed(shapes, dict.fromkeys(shapes, sharding.batch_sharding(self.mesh)))

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """On the devices, without what the task does not read."""
        return sharding.put(self._read(batch), self.mesh)

    def _read(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the task reads of a batch, and "weight"."""
        read = batch if self.loaders.shapes is None else [*self.loaders.shapes, "weight"]
        return {name: batch[name] for name in read}

    def _evaluation(self, state: Tree, frozen: Tree, batch: Tree, i: int) -> Call:
        return Call(("evaluate",), partial(_evaluate, self.task), (state, frozen, batch, np.int32(i)))

    def _compile_evaluation(self, state: Tree, frozen: Tree, batch: Tree) -> list[Compiled]:
        with jax.set_mesh(self.mesh):
            return [self.programs.compile(self._evaluation(state, frozen, batch, 0))]

    def run(self, due: dict[str, bool], step: int, state: Tree, frozen: Tree) -> None:
        """What is due of "evaluate", "picture" and "metrics"."""
        if due.get("evaluate"):
            self.metrics(step, state, frozen)
        if due.get("picture"):
            self.pictures(step, state, frozen)
        if due.get("metrics"):
            self.model_metrics(step, state, frozen)

    def check(self) -> None:
        """Between parts of the work."""
        self.stop.check()
        self.watchdog.renew()

    def metrics(self, step: int, state: Tree, frozen: Tree) -> None:
        averages: dict[str, Average] = {}
        batches = self.loaders.evaluate()
        line = progress.Line("validation", self.loaders.evaluations, unit="batches", active=self.is_main)
        try:
            for i, batch in enumerate(batches):
                self.check()
                with jax.set_mesh(self.mesh):
                    found = self.programs.run(self._evaluation(state, frozen, self._put(batch), i))
                averages = {name: a.merge(averages[name]) if averages else a for name, a in found.items()}
                jax.block_until_ready(averages)  # one batch at a time
                line.show(i + 1)
        finally:
            line.close()
            batches.close()
        means = {name: float(average.compute()) for name, average in averages.items()}
        count = int(next(iter(averages.values())).count)
        self.writer.scalars(step, means, prefix=logging.VALIDATION)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in means.items())
        self.say(f"step {step}  validation ({count} images): {shown}", flush=True)

    def pictures(self, step: int, state: Tree, frozen: Tree) -> None:
        self.check()
        if self.picture_rows is None:
            batches = self.loaders.pictures()
            self.picture_rows = self._read(next(batches))
            batches.close()
        batch = sharding.put({name: rows for name, rows in self.picture_rows.items() if name != "weight"}, self.mesh)
        with progress.Line("pictures of step", first=step, active=self.is_main):
            pictures = self.task.pictures(state, frozen, batch, self.mesh, self.check)
        for name, images in pictures.items():
            self.writer.picture(step, name, grid(images, columns=self.task.columns))

    def model_metrics(self, step: int, state: Tree, frozen: Tree) -> None:
        self.check()
        numbers, pictures = self.measure(step, self.task.weights(state, frozen), self.check)
        for name, image in pictures.items():
            self.writer.picture(step, logging.METRICS + name, image)
        self.writer.scalars(step, numbers, prefix=logging.METRICS)
        shown = [f"{name} {value:.4g}" for name, value in numbers.items() if name.startswith(SHOWN)]
        self.say(f"step {step}  {'  '.join(shown)}", flush=True)


class _Clock:
    """Steps per second of training alone: evaluation, pictures and checkpoints are not counted.

    run_began: time.perf_counter() when the process began.
    """

    def __init__(self, run_began: float):
        self.rate, self.began, self.run_began = float("nan"), time.perf_counter(), run_began
        self.waited = self.wait_share = self.stepping = 0.0

    def stop(self, steps: int) -> None:
        """After `steps` steps since it was started."""
        seconds = time.perf_counter() - self.began
        self.rate, self.wait_share = steps / seconds, self.waited / seconds
        self.stepping += seconds - self.waited
        self.began, self.waited = None, 0.0

    def resume(self) -> None:
        """Starts it again if it was stopped."""
        self.began = self.began or time.perf_counter()

    @contextmanager
    def waiting(self, metrics: Tree) -> Iterator[None]:
        """A context in which the host gets a batch. The device waits for it from the time at which it has done the
        newest step, whose `metrics` these are."""
        began, ready = time.perf_counter(), []

        def note() -> None:
            with suppress(Exception):  # an error of the step: the main thread meets it, too
                jax.block_until_ready(metrics)
                ready.append(time.perf_counter())

        threading.Thread(target=note, name="step is ready", daemon=True).start()
        yield
        if ready:  # otherwise the device still works
            self.waited += time.perf_counter() - max(began, ready[0])

    def shares(self) -> dict[str, float]:
        """data_wait: of the last steps' time, the share that the device waited for data; goodput: of the process's
        whole time until now, the share in steps, without that waiting."""
        return {"data_wait": self.wait_share, "goodput": self.stepping / (time.perf_counter() - self.run_began)}


class _Report:
    """The metrics of the steps since the last report. They wait on the device until they are written and shown."""

    def __init__(
        self, task: Task, config, collector: nonfinite.Collector, clock: _Clock, writer: logging.Writer, say,
        line: progress.Line,
    ):  # fmt: skip
        self.task, self.config, self.collector = task, config, collector
        self.clock, self.writer, self.say, self.line = clock, writer, say, line
        self.pending: list[tuple[int, dict[str, jax.Array]]] = []
        self.values: dict[str, float] = {}  # what is summed up, and not written yet

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Returns when the device is at most MOST_AHEAD steps behind."""
        self.pending.append((step, metrics))
        if len(self.pending) > MOST_AHEAD:
            jax.block_until_ready(self.pending[-1 - MOST_AHEAD][1])
        self.line.show(step, self.line.text)

    @property
    def is_long(self) -> bool:
        return len(self.pending) >= MOST_PENDING

    def sum_up(self) -> None:
        """Takes the numbers of the pending steps. Raises NonFinite: what they have made is not to be saved."""
        if not self.pending:
            return
        values = self.collector.means(self.pending)
        self.clock.stop(len(self.pending))
        self.pending.clear()
        self.values = values | self.clock.shares() | {"images_per_second": self.clock.rate * self.config.batch_size}

    def write(self, step: int) -> None:
        """Writes and shows what was summed up after this step, once."""
        values, self.values = self.values, {}
        if not values:
            return
        self.writer.scalars(step, values)
        told = logging.headline(values, self.task.headline)
        if values["data_wait"] > TELL_WAITING:
            told += f"  waited for data {values['data_wait']:.0%}"
        if values.get(nonfinite.SKIPPED):
            told += f"  skipped {values[nonfinite.SKIPPED]:.0f} (not finite)"
        self.line.show(step, told)
        told = f"step {step}/{self.config.steps}  {told}"
        if self.line.live:  # it tells the rest
            if values.get(nonfinite.SKIPPED):
                self.say(told)
            return
        self.say(f"{told}  left {progress.duration((self.config.steps - step) / self.clock.rate)}", flush=True)


class _Saves:
    """Saves a step once, and knows when `minutes` have passed since the last time (0 = never)."""

    def __init__(self, checkpoints: checkpoint.Checkpoints, step: int, minutes: float):
        self.checkpoints, self.step, self.minutes, self.time = checkpoints, step, minutes, time.perf_counter()

    def save(self, step: int, state: Tree) -> None:
        if step != self.step:
            self.checkpoints.save(step, state)
            self.step, self.time = step, time.perf_counter()

    def is_old(self) -> bool:
        """By the clock of the first host. All hosts must ask."""
        if self.minutes <= 0:
            return False
        old = time.perf_counter() - self.time > self.minutes * 60
        return bool(multihost_utils.broadcast_one_to_all(np.int32(old))) if jax.process_count() > 1 else old
