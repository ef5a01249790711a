"""A run compiles all its programs before its first step, each once; what fails, or does not fit, is told then."""

from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax import process, recipes
from ldm_jax.cli import train
from ldm_jax.errors import ConfigError
from ldm_jax.programs import Store
from ldm_jax.training import ahead, setup, stopping
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
    """Those of pictures and of metrics are for other numbers of samples."""
    use_tiny(monkeypatch)
    told, _ = here(train.main, *command(tmp_path, *OPTIONS, *options, recipe=recipe))
    (line,) = (line for line in told.splitlines() if line.startswith("compiled: training step "))
    assert all(f", {part} " in line for part in parts) and "; planned memory 0." in line
    begin = compiled.index(BEGIN)
    assert {name: n for name, n in Counter(compiled[:begin]).items() if name in programs} == programs
    assert not set(compiled[begin:]) & programs.keys(), compiled[begin:]
    assert told.count("validation (12 images)") == 2 and len(list((tmp_path / "pictures").iterdir())) > 1


def test_places_that_are_said_in_two_ways_are_one():
    """Versions of JAX differ in how they say where a result is."""
    mesh, store = Mesh(np.array(jax.devices()), ("data",)), Store()
    shape = jax.ShapeDtypeStruct((4, 2), np.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    assert store.shapes(("double",), lambda x: 2 * x, shape).shape == (4, 2)
    for spec in (PartitionSpec("data"), PartitionSpec("data", None)):
        x = jax.device_put(np.ones((4, 2), np.float32), NamedSharding(mesh, spec))
        assert store.run(("double",), lambda x: 2 * x, x).sum() == 16
    assert store.compiled == len(store.programs) == 1


def test_what_does_not_fit_is_told_before_the_first_step(compiled, tmp_path, monkeypatch):
    added = iter([0, 2**33])  # of the training step, of the evaluation
    monkeypatch.setattr(process, "added_bytes", lambda program: next(added))
    monkeypatch.setattr(process, "memory_limit", lambda devices: 2**32)
    _, error = here(train.main, *command(tmp_path, *OPTIONS, *MODEL), code=2)
    error = " ".join(error.split())
    assert "the evaluation does not fit: 8 GiB are planned for a device, which has 4." in error
    assert "--config.every.evaluate=0" in error and "Traceback" not in error
    assert BEGIN not in compiled and not list((tmp_path / "checkpoints").iterdir())


def program(temporary=0, result=0, in_place=0, given=1):
    sizes = dict(temp_size_in_bytes=temporary, output_size_in_bytes=result, alias_size_in_bytes=in_place)
    sizes["argument_size_in_bytes"] = given
    return SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**sizes))


def test_the_largest_program_counts():
    """Besides what stays: results that take no argument's place, temporaries, and what is there for its time alone."""
    made = ahead.Ahead(held=3 * 2**30, limit=None)
    made.compile("training step", lambda: [program(temporary=2**30, result=2**32, in_place=2**32)])
    assert made.peak == 4 * 2**30 and made.told().endswith("; planned memory 4 GiB")
    made.compile("pictures", lambda: [program(result=2**29), program(temporary=2**30)], more=2**30)
    assert made.peak == 5 * 2**30
    made = ahead.Ahead(held=3 * 2**30, limit=79 * 2**30)
    made.compile("training step", lambda: [program(temporary=2**28)])
    assert made.told() == "compiled: training step 0.0 s; planned memory 3.25 GiB of 79"
    for silent in (program(given=0), SimpleNamespace(memory_analysis=lambda: None)):
        made = ahead.Ahead(held=3 * 2**30, limit=79 * 2**30)
        made.compile("training step", lambda silent=silent: [silent])
        assert made.told() == "compiled: training step 0.0 s"


def test_a_compiler_that_runs_out_of_memory_is_told_of():
    """Other errors of it stay as they are."""

    def fails(text):
        raise jax.errors.JaxRuntimeError(text)

    made = ahead.Ahead(held=0, limit=None)
    with pytest.raises(ConfigError, match=r"the pictures do not fit: RESOURCE_EXHAUSTED: .*\n.*config\.every\.picture"):
        made.compile("pictures", lambda: fails("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm."))
    with pytest.raises(jax.errors.JaxRuntimeError):
        made.compile("pictures", lambda: fails("INTERNAL: something else"))


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
