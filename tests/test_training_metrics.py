"""Models are measured while they are trained. The feature network is a tiny one."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import recipes, report, training_metrics
from ldm_jax.errors import UsageError
from ldm_jax.evaluation import kept
from ldm_jax.training_metrics import TrainingMetrics
from tests.test_pipeline import keep
from tests.test_report import class_run, folder_of_data, inpainting, use_tiny


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return class_run(tmp_path_factory.mktemp("class"))


@pytest.fixture(scope="module")
def pipe(run):
    return ldm_jax.load(run)


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_metrics_during_training_are_those_of_the_report(run, pipe, tmp_path):
    """Also of the raw parameters; the best model is kept whole, and a worse one does not replace it."""
    config = pipe.config.copy_and_resolve_references().unlock()
    sections = recipes.load("quickstart_ldm:tiny")
    config.update(every=sections.every, metrics=sections.metrics)
    config.metrics.update(networks="tiny", samples=6, steps=2, reference=12, batch=6, raw=True, best="FD-tiny")
    said = []
    measure = TrainingMetrics(config, tmp_path, say=said.append)
    compiled = len(measure.compile({"averaged": shapes_of((pipe.params, pipe.frozen))}))
    other = jax.tree.map(lambda x: x + 0.05, pipe.params)
    first, shown = measure(10, {"averaged": (pipe.params, pipe.frozen), "raw": (other, pipe.frozen)})
    judge = report.Judge(["tiny"], report.data_of(config, run, count=12), cache=tmp_path / "cache", batch=6, say=len)
    expected = judge.report(report.Samples(pipe, 6, steps=2, batch=6))
    assert {name: value for name, value in first.items() if not name.startswith("raw_")} == expected.metrics
    assert first["raw_FD-tiny"] != first["FD-tiny"] and {"random", "nearest"} <= set(shown)
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 10 and "best so far" in said[-1]
    programs = measure._pipe.compiled
    assert compiled == programs + 1  # that of the feature network
    second, _ = measure(20, {"raw": (other, pipe.frozen)})
    assert second["FD-tiny"] == first["raw_FD-tiny"] and measure._pipe.compiled == programs
    best = ldm_jax.load(tmp_path / "best")
    better = pipe.params if first["FD-tiny"] <= second["FD-tiny"] else other
    assert all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (best.params, better))))
    config.metrics.best = "KD-tiny"  # another metric: what is there does not count
    TrainingMetrics(config, tmp_path, say=len)(30, {"raw": (other, pipe.frozen)})
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 30


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(3))
def test_a_kill_while_the_best_model_is_replaced_loses_none(at, tmp_path, monkeypatch):
    """Whatever call of those that remove and rename is the last one."""

    class Pipe:
        def save(self, folder):
            folder.mkdir()
            (folder / "model").write_text("new")

    def measure(value):
        metrics = object.__new__(TrainingMetrics)
        metrics.workdir, metrics._pipe = tmp_path, Pipe()
        return metrics._replace_best({"metric": "FD-a", "measured": {}, "value": value, "step": int(value)})

    def best():
        return json.loads((tmp_path / "best" / "best.json").read_text())["step"]

    assert measure(9.0) and not measure(9.5) and best() == 9
    calls, rename, remove = [], Path.rename, training_metrics.rmtree

    def killing(call):
        def called(*given, **options):
            calls.append(call)
            if len(calls) > 2 + at:  # two remove what is not there
                raise Killed
            return call(*given, **options)

        return called

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killing(rename))
        patched.setattr(training_metrics, "rmtree", killing(remove))
        with pytest.raises(Killed):
            measure(5.0)
    assert not measure(7.0) and best() == 5
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("best", "FID", r"config\.metrics\.best='FID' is not one of the metrics: FD-tiny"),
        ("steps", 1001, r"config\.metrics\.steps=1001"),
        ("samples", 1, r"config\.metrics\.samples=1 "),
    ],
)
def test_mistakes_of_metrics_show_at_the_start(pipe, tmp_path, name, value, message):
    config = pipe.config.copy_and_resolve_references().unlock()
    config.metrics.update({"networks": "tiny", "reference": 12, name: value})
    with pytest.raises(UsageError, match=message):
        TrainingMetrics(config, tmp_path)


BEST = [
    ("emoji_superres", 32, 5, "PSNR", True),
    ("emoji_superres", 32, 5, "SSIM", True),
    ("emoji_superres", 32, 5, "LPIPS-alex", True),
    ("emoji_superres", 16, 5, "LPIPS-alex", False),  # pictures too small for it
    ("emoji_superres", 16, 5, "LPIPS-vgg16", False),  # no weights
    ("emoji_superres", 16, 3, "precision-tiny", False),  # fewer pictures than it needs
    ("quickstart_class", 16, 5, "PSNR", False),
    ("quickstart_first_stage", 8, 5, "SSIM", False),
    ("quickstart_first_stage", 8, 5, "PSNR", True),
    ("quickstart_first_stage", 32, 5, "LPIPS-vgg16", False),
    ("quickstart_first_stage", 32, 5, "perplexity", False),  # no codebook
]


@pytest.mark.parametrize(("recipe", "side", "samples", "best", "fits"), BEST)
def test_the_best_metric_is_one_that_there_will_be(tmp_path, recipe, side, samples, best, fits):
    config = recipes.load(f"{recipe}:tiny").unlock()
    config.data.update(source="shapes", image_size=side, scenes=16)
    config.metrics.update(networks="tiny", reference=9, samples=samples, weights=str(tmp_path), best=best)
    (tmp_path / "lpips_alex.safetensors").touch()
    if fits:
        TrainingMetrics(config, tmp_path)
    else:
        with pytest.raises(UsageError, match=rf"best='{best}' is not one of the metrics: "):
            TrainingMetrics(config, tmp_path)


def test_metrics_of_a_first_stage_during_training(tmp_path):
    pipe = ldm_jax.load(keep(tmp_path / "run", recipes.load("quickstart_first_stage:tiny").unlock()))
    config = pipe.config.copy_and_resolve_references().unlock()
    config.metrics.update(networks="tiny", samples=5, batch=5, weights=str(tmp_path))
    measure = TrainingMetrics(config, tmp_path)
    compiled = len(measure.compile({"raw": ({}, shapes_of(pipe.frozen))}))
    found, _ = measure(1, {"raw": ({}, pipe.frozen)})
    assert compiled == measure._pipe.compiled + 1
    assert {"rFD-tiny", "PSNR", "SSIM"} <= set(found) and not (tmp_path / "best").exists()
    data, said = folder_of_data(tmp_path / "data"), []
    (data / "validation" / "1.png").write_bytes(b"nothing")
    config.data.update(source="folder", path=str(data))
    found, _ = TrainingMetrics(config, tmp_path, say=said.append)(1, {"raw": ({}, pipe.frozen)})
    assert "rFD-tiny" in found and sum("validation/1.png" in line for line in said) == 1


def test_inpainting_has_as_many_samples_as_pictures(tmp_path, monkeypatch):
    """Made in two parts, of which the last one is smaller."""
    run = keep(tmp_path / "inpaint", inpainting())
    pipe = ldm_jax.load(run)
    config = pipe.config.copy_and_resolve_references().unlock()
    few = len(report.data_of(config, run, train=False))
    monkeypatch.setattr(kept, "PART", few - 1)
    config.metrics.update(networks="tiny", samples=few + 5, steps=1, batch=few, reference=4, weights=str(tmp_path))
    measure = TrainingMetrics(config, run, say=len)
    compiled = len(measure.compile({"raw": shapes_of((pipe.params, pipe.frozen))}))
    measured, _ = measure(1, {"raw": (pipe.params, pipe.frozen)})
    assert compiled == measure._pipe.compiled + 1
    assert sum(number for name, number in measured.items() if name.startswith("pictures, ")) == few
