"""A run compiles all its programs before its first step, each once; what fails, or does not fit, is told then."""

import re
import time
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax import process, recipes
from ldm_jax.cli import train
from ldm_jax.errors import ConfigError
from ldm_jax.programs import Call, CompiledPrograms
from ldm_jax.training import ahead, loop, setup, stopping, watchdog
from ldm_jax.training_metrics import TrainingMetrics
from tests.test_docs import options
from tests.test_report import use_tiny
from tests.training.test_loop import command, here

# Small networks; everything is due after the second step and after the last one.
OPTIONS = ["--config.steps=3", "--config.data.validation_images=12", "--config.every.evaluate=2",
           "--config.every.picture=2"]  # fmt: skip
MODEL = ["--config.first_stage.kind=identity", "--config.unet.channel_mult=(1,)", "--config.unet.num_res_blocks=1",
         "--config.unet.attention_downsamples=()", "--config.sample.steps=2"]  # fmt: skip
METRICS = ["--config.every.metrics=2", "--config.metrics.networks=tiny", "--config.metrics.samples=6",
           "--config.metrics.reference=8", "--config.metrics.steps=2"]  # fmt: skip
FIRST_STAGE = ["--config.first_stage.ch_mult=(1,)", "--config.first_stage.num_res_blocks=1",
               "--config.loss.disc_layers=1"]  # fmt: skip
BEGIN = "the first step"


@pytest.fixture
def compiled(monkeypatch):
    """Names of all functions that are compiled, and BEGIN."""
    names, begin = [], stopping.Stop.begin

    def note(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name.removeprefix("jit(").removesuffix(")"))

    monkeypatch.setattr(stopping.Stop, "begin", lambda self: (names.append(BEGIN), begin(self)))
    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.mark.parametrize(
    ("recipe", "options", "parts", "programs"),
    [
        ("quickstart_class", [*MODEL, *METRICS], ("evaluation", "pictures", "metrics"),
         dict(step=1, _evaluate=1, _begin=2, _steps=2, decode=2, _features=1)),
        ("quickstart_first_stage", FIRST_STAGE, ("evaluation", "pictures"),
         dict(step=1, _evaluate=1, _reconstruct=1)),
    ],
)  # fmt: skip
def test_each_program_is_compiled_once_before_the_first_step(
    recipe, options, parts, programs, compiled, tmp_path, monkeypatch
):
    """Those of pictures and of metrics are for other numbers of samples. Weights are not copied for them."""
    use_tiny(monkeypatch)
    copied, make = [], TrainingMetrics.compile
    monkeypatch.setattr(
        TrainingMetrics, "compile", lambda self, w: (copied.extend(jax.tree.leaves(w)), make(self, w))[1]
    )
    told, _ = here(train.main, *command(tmp_path, *OPTIONS, *options, recipe=recipe))
    lines = [line.rsplit(" ", 2)[0] for line in told.splitlines() if line.startswith("compiled: ")]
    assert lines == [f"compiled: {part}" for part in ("training step", *parts)]
    assert re.search(r"^compiled: .* s\nplanned memory 0\.\d+ GiB$", told, re.MULTILINE)
    assert bool(copied) == ("metrics" in parts) and all(isinstance(x, jax.ShapeDtypeStruct) for x in copied)
    begin = compiled.index(BEGIN)
    assert {name: n for name, n in Counter(compiled[:begin]).items() if name in programs} == programs
    assert not set(compiled[begin:]) & programs.keys(), compiled[begin:]
    assert told.count("validation (12 images)") == 2 and len(list((tmp_path / "pictures").iterdir())) > 1


def test_places_that_are_said_in_two_ways_are_one():
    """Versions of JAX differ in how they say where a result is."""
    mesh, made = Mesh(np.array(jax.devices()), ("data",)), CompiledPrograms()

    def double(x):
        return Call(("double",), lambda x: 2 * x, (x,))

    shape = jax.ShapeDtypeStruct((4, 2), np.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    assert made.shapes(double(shape)).shape == (4, 2)
    for spec in (PartitionSpec("data"), PartitionSpec("data", None)):
        x = jax.device_put(np.ones((4, 2), np.float32), NamedSharding(mesh, spec))
        assert made.run(double(x)).sum() == 16
    assert made.compiled == len(made.programs) == 1


def test_what_does_not_fit_is_told_before_the_first_step(compiled, tmp_path, monkeypatch):
    planned = iter([process.Planned(1, 0, 0), process.Planned(1, 0, 2**33)])  # of the training step, of the evaluation
    monkeypatch.setattr(process, "planned", lambda program: next(planned))
    monkeypatch.setattr(process, "memory_limit", lambda devices: 2**32)
    _, error = here(train.main, *command(tmp_path, *OPTIONS, *MODEL), code=2)
    error = " ".join(error.split())
    assert "too little memory for the evaluation: 8 GiB are planned for a device, which has 4." in error
    assert "--config.every.evaluate=0" in error and "Traceback" not in error
    assert BEGIN not in compiled and not list((tmp_path / "checkpoints").iterdir())


def program(temporary=0, result=0, in_place=0, given=1):
    sizes = dict(temp_size_in_bytes=temporary, output_size_in_bytes=result, alias_size_in_bytes=in_place)
    sizes["argument_size_in_bytes"] = given
    return SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))


GIB = 2**30


def told(*parts, limit=None, held=3 * GIB):
    """What is said of parts (name, its programs, bytes while they run); the first line of each is left out."""
    lines = []
    parts = [ahead.Part(name, lambda made=made: made, "a remedy", more) for name, made, more in parts]
    made = ahead.compile_all(parts, held, limit, lambda line, flush: lines.append(line))
    assert list(made) == [part.name for part in parts]
    assert lines[:-1] == [f"compiled: {part.name} 0.0 s" for part in parts]
    return lines[-1] if lines else ""


def test_the_largest_program_counts():
    """Besides what stays: results that take no argument's place, temporaries, and what is there for its time alone."""
    step = "training step", [program(temporary=GIB, result=4 * GIB, in_place=4 * GIB)], 0
    pictures = "pictures", [program(result=GIB // 2), program(temporary=GIB)], GIB
    assert told(step) == "planned memory 4 GiB"
    assert told(step, pictures) == told(pictures, step) == "planned memory 5 GiB"
    assert told(step, pictures, limit=79 * GIB) == "planned memory 5 GiB of 79"
    with pytest.raises(ConfigError, match=r"for the pictures: 5 GiB are planned .* has 4\.5\."):
        told(step, pictures, limit=4 * GIB + GIB // 2)
    assert told(("nothing", [], 0)) == "planned memory 3 GiB" and told() == ""


@pytest.mark.parametrize("silent", [program(given=0), SimpleNamespace(memory_analysis=lambda: None)])
def test_programs_that_do_not_say_what_they_need_are_named(silent):
    """There is no sum of the others, which are compared with the limit."""
    parts = ("training step", [silent], 0), ("evaluation", [program()], 0), ("pictures", [program(), silent], 8 * GIB)
    for limit in (None, 4 * GIB):
        line = told(*parts, limit=limit)
        assert line == "planned memory not known: the compiler does not say it of training step, pictures"
    with pytest.raises(ConfigError, match="for the evaluation: 3 GiB"):
        told(*parts, limit=2 * GIB)


def test_a_first_program_that_takes_long_is_told_of(monkeypatch):
    monkeypatch.setattr(ahead, "PATIENCE", 0.05)
    lines = []

    def slow(seconds):
        return lambda: time.sleep(seconds) or [program()]

    parts = [ahead.Part("training step", slow(0.5), ""), ahead.Part("evaluation", slow(0.2), "")]
    ahead.compile_all(parts, 0, None, lambda line, flush: lines.append(line.rstrip("0123456789. s")))
    assert lines[:3] == ["compiling the training step", "compiled: training step", "compiled: evaluation"]
    assert len(lines) == 4


def test_a_compiler_that_runs_out_of_memory_is_told_of():
    """Other errors of it stay as they are."""

    def fails(text):
        def compile():
            raise jax.errors.JaxRuntimeError(text)

        ahead.compile_all([ahead.Part("pictures", compile, "no pictures")], 0, None, print)

    words = r"too little memory for the pictures: RESOURCE_EXHAUSTED: .*\nWhat helps: no pictures"
    with pytest.raises(ConfigError, match=words):
        fails("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")
    with pytest.raises(jax.errors.JaxRuntimeError):
        fails("INTERNAL: something else")


@pytest.mark.parametrize("name", ["class", "classifier", "first_stage"])
def test_remedies_are_options_of_the_recipe(name, tmp_path):
    config = recipes.load(f"quickstart_{name}:tiny", ["--config.first_stage.checkpoint=random"])
    task = setup.task(config)
    measure = SimpleNamespace(taken=lambda weights: 0, compile=lambda weights: [])
    evaluator = loop._Evaluator(task, setup.loaders(config, tmp_path), setup.mesh(config), *[None] * 4, measure)
    due = dict(evaluate=True, picture=True, metrics=task.draws)
    remedies = {part.name: part.remedy for part in evaluator.parts(due, *setup.abstract_run(config))}
    assert list(remedies) == ["evaluation", *["pictures", "metrics"] * task.draws]
    named = re.findall(r"--(config\.[\w.]+)", " ".join([loop.STEP_REMEDY, *remedies.values()]))
    assert len(named) > 4 and not set(named) - options(config)


def test_metrics_take_weights_and_pictures(tmp_path, monkeypatch):
    """Feature networks are held all the time."""
    use_tiny(monkeypatch)
    config = recipes.load("quickstart_class:tiny", [*MODEL, *METRICS])
    measure = TrainingMetrics(config, tmp_path)
    (extractor,) = measure._judge.extractors
    assert measure.held == sum(x.nbytes for x in jax.tree.leaves(extractor._params)) > 0
    size = extractor.network.size
    pictures = 2 * np.zeros((config.metrics.batch, size, size, 3), np.float32).nbytes
    weights = {"raw": ({"a": np.zeros(5, np.float32)}, {"b": np.zeros((), np.float32)}), "other": ({}, {})}
    assert measure.taken(weights) == 6 * 4 + pictures


def test_what_a_finished_run_has_left_to_do_is_compiled_before_it(compiled, tmp_path, monkeypatch):
    """The watchdog does not run meanwhile. The batch of pictures does not stay on the devices."""
    start = command(tmp_path, *OPTIONS, *FIRST_STAGE, recipe="quickstart_first_stage")
    here(train.main, *start)
    (tmp_path / "pictures" / "reconstructions_0000003.png").unlink()
    compiled.clear()
    renew, evaluators, run = watchdog.Watchdog.renew, [], loop._Evaluator.run
    monkeypatch.setattr(watchdog.Watchdog, "renew", lambda self: (compiled.append(BEGIN), renew(self)))
    monkeypatch.setattr(loop._Evaluator, "run", lambda self, *given: (evaluators.append(self), run(self, *given)))
    said, _ = here(train.main, *start)
    assert "compiled: pictures " in said and "(picture): this is done now" in said and "training step" not in said
    begin = compiled.index(BEGIN)
    assert compiled[:begin].count("_reconstruct") == 1 and "_reconstruct" not in compiled[begin:]
    assert not {"step", "_evaluate"} & set(compiled)
    assert all(isinstance(x, np.ndarray) for x in evaluators[0].picture_rows.values())


def test_the_limit_is_that_of_the_smallest_device():
    def device(stats):
        return SimpleNamespace(memory_stats=lambda: stats)

    assert process.memory_limit([device({"bytes_limit": 7}), device({"bytes_limit": 5})]) == 5
    assert process.memory_limit([device({"bytes_limit": 7}), device(None)]) is None
    assert process.memory_limit([device({})]) is None


@pytest.mark.parametrize(
    "name", ["ldm", "class", "text", "layout", "semantic", "superres", "inpaint", "hybrid", "classifier", "first_stage"]
)
def test_batches_of_evaluation_have_the_shapes_that_were_compiled_for(name, tmp_path):
    config = recipes.load(f"quickstart_{name}:tiny", ["--config.first_stage.checkpoint=random"])
    loaders = setup.loaders(config, tmp_path)
    batches = loaders.evaluate()
    batch = next(batches)
    batches.close()
    for field, shape in loaders.shapes.items():
        assert (batch[field].shape, batch[field].dtype) == (shape.shape, shape.dtype), field
