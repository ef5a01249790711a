"""A classifier's run beside the run that it guides: what training takes over, what sample.py refuses, what it makes."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ldm_jax import checkpoint, config_file, recipes, rundir
from ldm_jax.cli import sample
from ldm_jax.errors import UsageError
from ldm_jax.training import setup

ROOT = Path(__file__).resolve().parents[1]
ONE_LEVEL = dict(channel_mult=(1,), attention_downsamples=())


def config_of(name, **changes):
    """The tiny variant on 8x8 pixels, one level deep; `changes` of further options, with __ for a dot."""
    config = recipes.load(f"{name}:tiny")
    config.first_stage.kind, config.data.image_size = "identity", 8
    (config.unet if config.task == "ldm" else config.classifier).update(ONE_LEVEL)
    if config.task == "ldm":
        config.unet.out_channels = 3
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def keep(workdir, config, scale=1.0, draw=None):
    """A run directory with a checkpoint of zeros, or of what `draw(shape)` gives."""
    config_file.save(workdir, config.to_dict())
    state, _ = setup.abstract_run(config)
    draw = draw or np.zeros
    checkpoint.save_from_numpy(workdir, 0, jax.tree.map(lambda s: np.asarray(draw(s.shape), s.dtype), state))
    checkpoint.save_tree(workdir / "frozen", {"first_stage": {}, "latent_scale": np.float32(scale)})
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An LDM whose UNet is zero, which as v is exact for standard normal pixels, and classifiers for it and others."""
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    keep(root / "ldm", config_of("quickstart_ldm"), scale=2.0)
    draw = lambda shape: 0.3 * rng.standard_normal(shape) + (len(shape) == 1)  # noqa: E731
    keep(root / "classifier", config_of("quickstart_classifier"), 2.0, draw)
    keep(root / "other_scale", config_of("quickstart_classifier"), 1.9)
    others = {"other_schedule": {"diffusion__end": 0.0205}, "other_stage": {"first_stage__ch": 64}}
    for name, changes in others.items():
        config_file.save(root / name, config_of("quickstart_classifier", **changes).to_dict())
    return root


def arguments(*options):
    return sample.parse(["--workdir=ldm", "--label=3", "--steps=10", "--num=2", *options])


WRONG = [
    (["--classifier=other_scale"], r"latent scale is 1\.9 of the classifier, 2 of the model in ldm"),
    (["--classifier=other_schedule"], r"diffusion\.end: 0\.0205 here, 0\.0195 there"),
    (["--classifier=other_stage"], r"first_stage\.ch: 64 here, 32 there"),
    (["--classifier=ldm"], "holds a run of task 'ldm', not of a classifier"),
    (["--classifier=nowhere"], "nowhere is not a run directory"),
    (["--classifier=classifier", "--label=64"], r"classes 0\.\.63"),
    (["--classifier=classifier", "--size=64x64"], "sees images of 8x8 pixels alone, not of 64x64"),
    ([], "takes no condition"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_a_classifier_of_other_latents_is_refused(runs, monkeypatch, options, message):
    monkeypatch.chdir(runs)
    with pytest.raises(UsageError, match=message):
        sample.run(arguments(*options))


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--classifier=c"], "--classifier needs label"), (["--classifier-scale=2"], "belongs to classifier")],
)
def test_options_that_need_another(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        sample.main(["--workdir=x", *options])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_refusal_ends_with_exit_code_2(runs):
    command = [sys.executable, ROOT / "sample.py", "--workdir=ldm", "--label=3", "--classifier=other_schedule"]
    result = subprocess.run(command, cwd=runs, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr and "0.0205" in result.stderr


def test_other_weights_of_the_first_stage_are_refused(runs):
    """The same architecture and scale are not enough."""
    theirs, ours = ({"latent_scale": np.float32(2), "first_stage": {"w": np.array([1.0, x])}} for x in (2.0, 3.0))
    rundir.check_same_weights(theirs, theirs, "runs/ldm")
    with pytest.raises(ValueError, match=r"another first stage than the model in runs/ldm.*--config\.guides"):
        rundir.check_same_weights(ours, theirs, "runs/ldm")


def test_training_takes_over_scale_and_first_stage(runs, tmp_path):
    config = config_of("quickstart_classifier", guides=str(runs / "ldm"))
    taken = setup.frozen(config, tmp_path)
    assert float(setup.task(config).prepare(taken, iter(()), print)["latent_scale"]) == 2.0
    for changes, message in (
        ({"guides": str(runs / "ldm"), "diffusion__timesteps": 500}, r"timesteps: 500 here, 1000 there"),
        ({"guides": str(runs / "classifier")}, "to guide: .* holds a run of task 'classifier'"),
        ({"guides": str(runs / "nowhere")}, "to guide: .*nowhere is not a run directory"),
        ({"first_stage__kind": "kl", "first_stage__checkpoint": ""}, r"--config\.guides=runs/ldm"),
    ):
        with pytest.raises(UsageError, match=message):
            setup.frozen(config_of("quickstart_classifier", **changes), tmp_path)


def test_too_few_classes_are_named(runs):
    with pytest.raises(ValueError, match=r"64 classes, more than config\.classifier\.n_classes=10"):
        setup.source(config_of("quickstart_classifier", classifier__n_classes=10), train=True)


def test_the_classifier_is_followed(runs, tmp_path, monkeypatch):
    """Through the command line's own path: a scale makes the classifier surer of the label, of which the model knows
    nothing; an image's condition is in its name and texts."""
    monkeypatch.chdir(runs)
    config = ConfigDict(config_file.load("ldm"))
    classifier, params, _ = rundir.classifier("classifier", config, rundir.kept_frozen(config, "ldm"), "ldm")

    @jax.jit
    def log_p(images):
        z = images.astype(np.float32) / 127.5 - 1
        return classifier.log_p(params, 2.0 * z, jnp.zeros(2, jnp.int32), jnp.full(2, 3))

    def made(name, *options):
        out = sample.run(sample.parse(["--workdir=ldm", "--steps=10", f"--out={tmp_path / name}", *options]))
        return np.stack([np.asarray(Image.open(p)) for p in sorted(out.glob("0*.png"))])

    label = ("--classifier=classifier", "--label=3", "--num=2")
    free, steered = made("free", *label, "--classifier_scale=0"), made("steered", *label, "--classifier-scale=5")
    print(log_p(free), log_p(steered))
    assert np.all(log_p(steered) > log_p(free) + 0.5)
    texts = Image.open(tmp_path / "steered" / "000001_class-3.png").text
    assert texts["classifier"] == "classifier step 0" and texts["classifier_scale"] == "5.0"
    assert texts["condition"] == "class 3"
