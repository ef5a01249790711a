"""scripts/quality_steps.py: which points it asks for, and its picture. The feature network is a tiny one."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import recipes, report
from ldm_jax.errors import UsageError
from ldm_jax.evaluation import features, kept
from tests.evaluation.test_features import NETWORK, PARAMS
from tests.test_pipeline import classes

PATH = Path(__file__).resolve().parents[1] / "scripts" / "quality_steps.py"
SPEC = importlib.util.spec_from_file_location("quality_steps", PATH)
quality_steps = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(quality_steps)


def points(config, *options):
    return list(quality_steps.asked(quality_steps.parser().parse_args(["--workdir=x", *options]), config))


def test_every_sampler_at_every_number_of_steps():
    found = points(recipes.load("quickstart_ldm:tiny"), "--steps=5,20")
    assert len(found) == 20 and {panel for panel, *_ in found} == {"steps"}
    assert ("steps", "heun", 20, dict(sampler="heun", steps=20)) in found
    flow = points(flow_config(), "--steps=5")
    assert "plms" not in {line for _, line, *_ in flow}
    with pytest.raises(UsageError, match="--samplers=plms: this model is sampled by ddim, ddpm, euler"):
        points(flow_config(), "--samplers=ddim,plms")


def flow_config():
    return recipes.load("quickstart_ldm:tiny", ["--config.diffusion.kind=flow", "--config.diffusion.prediction=v"])


def test_guidance_where_the_model_knows_it():
    found = points(classes(), "--samplers=ddim", "--steps=5", "--scales=1,4", "--autoguide=runs/small")
    given = {(line, x): options for panel, line, x, options in found if panel == "scale"}
    assert given["guidance", 1] == given["autoguidance", 1] == dict(steps=50)
    assert given["guidance", 4] == dict(steps=50, guidance=4.0)
    assert given["guidance in the interval", 4] == dict(steps=50, guidance=4.0, guidance_interval=(0.2, 2.0))
    assert given["autoguidance", 4] == dict(steps=50, autoguide="runs/small", autoguide_scale=4.0)


class Drawn:
    """In place of samples: random pictures that depend on the request."""

    settings, name = {}, "drawn"

    def __init__(self, pipe, num, data, **options):
        self.identity = json.dumps(options)
        rng = np.random.default_rng(list(self.identity.encode()))
        self.images = list(rng.integers(0, 256, (num, 32, 32, 3), np.uint8))

    def __len__(self):
        return len(self.images)

    def part(self, first, last):
        return self.images[first:last]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A model whose samples are `Drawn`, and a tiny feature network."""
    config = classes()
    config.data.image_size = 32
    monkeypatch.setattr(features, "load", lambda name, folder, batch: features.Extractor(NETWORK, PARAMS, batch=batch))
    monkeypatch.setattr(kept.features_of, "__defaults__", (tmp_path / "kept", print))
    monkeypatch.setattr(report, "Samples", Drawn)
    monkeypatch.setattr(ldm_jax, "load", lambda run: SimpleNamespace(config=config))


def test_a_picture_of_a_run(tmp_path, drawn):
    options = ["--num=6", "--reference=8", "--steps=2,3", "--samplers=ddim", "--scales=1,2", "--guided-steps=2"]
    quality_steps.main([f"--workdir={tmp_path}", *options, "--batch=6"])
    record = json.loads((tmp_path / "quality_steps.json").read_text())
    assert [(row["panel"], row["line"], row["x"]) for row in record["rows"]] == [
        ("", "unseen pictures", 0), ("steps", "ddim", 2), ("steps", "ddim", 3), ("scale", "guidance", 1),
        ("scale", "guidance", 2), ("scale", "guidance in the interval", 1), ("scale", "guidance in the interval", 2),
    ]  # fmt: skip
    values = [row["distance"] for row in record["rows"]]
    assert min(values) >= 0 and values[3] == values[5] and len(set(values)) == 6
    assert Image.open(tmp_path / "quality_steps.png").size == (1200, 420)


def test_compared_with_reconstructions(tmp_path, drawn, monkeypatch):
    made = []

    def rebuilt(pipe, pictures, batch):
        made.append(pictures.name.split()[0])
        return pictures

    monkeypatch.setattr(report, "Reconstructions", rebuilt)
    options = ["--num=6", "--reference=8", "--steps=2", "--samplers=ddim", "--scales=1", "--batch=6"]
    quality_steps.main([f"--workdir={tmp_path}", "--reconstructions", *options])
    assert made == ["training", "validation"]
