"""May a run go on? Options that changed, and what frozen/ was made from."""

import json

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint, config_file, recipes, rundir
from ldm_jax.errors import ConfigError
from ldm_jax.training import resume, setup


def recipe(**changes):
    config = recipes.load("quickstart_class:tiny").unlock()
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def run(tmp_path):
    config_file.save(tmp_path, recipe().to_dict())
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 9, "every.checkpoint": 1, "keep": 7, "keep_every": 100},
        {"mesh.fsdp": 2, "data.workers": 3, "data.cache_latents": "x", "unet.remat": True, "data.validation_images": 4},
        {"sample.number": 2},
        {"dit.width": 64},  # the run has a UNet
        {"ema.sigma_rel": (0.2,)},  # and no power-function EMA
    ],
)
def test_what_does_not_change_the_model_may_change(run, changes):
    resume.check_same_run(recipe(**changes), run)


def test_each_host_has_its_own_path_of_the_images(run, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    resume.check_same_run(recipe(**{"data.path": "elsewhere"}), run)


def test_recomputing_activations_leaves_the_parameters_alone():
    small = {"unet.channel_mult": (1,), "unet.attention_downsamples": (), "first_stage.kind": "identity"}
    one, other = (rundir.params_shapes(recipe(**small, **{"unet.remat": remat})) for remat in (False, True))
    assert jax.tree.structure(one) == jax.tree.structure(other)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 4), ("seed", 3), ("data.path", "other"), ("data.image_size", 64), ("data.source", "folder"),
     ("optim.learning_rate", 0.5), ("dtype", "bfloat16"), ("ema.decay", 0.5), ("conditioner.drop_prob", 0.5)],
)  # fmt: skip
def test_what_changes_the_model_must_be_accepted(run, name, value):
    before = dict(config_file.leaves(recipe().to_dict()))[name]
    with pytest.raises(ConfigError) as error:
        resume.check_same_run(recipe(**{name: value}), run)
    text = str(error.value)
    assert f"    {name}: {before!r} there, {value!r} here\n" in text and "--accept-changes" in text
    resume.check_same_run(recipe(**{name: value}), run, accept_changes=True)


@pytest.mark.parametrize(
    ("name", "value"), [("unet.model_channels", 64), ("first_stage.checkpoint", "other"), ("network.kind", "dit")]
)
def test_what_checkpoints_cannot_follow_is_refused(run, name, value):
    with pytest.raises(ConfigError, match=rf"{name}: .* there, .* here\nUse another --workdir"):
        resume.check_same_run(recipe(**{name: value}), run, accept_changes=True)


def test_options_of_the_loss_can_be_accepted(run):
    """Those of config.diffusion, too: the checkpoints fit them. Those of its noise schedule not."""
    config_file.save(run, recipe().to_dict())
    for name, value in (
        ("loss", "l1"),
        ("weighting", "min_snr"),
        ("offset_noise", 0.1),
        ("t_distribution", "logit_normal"),
    ):
        changed = recipe(**{f"diffusion.{name}": value})
        with pytest.raises(ConfigError, match=rf"(?s)diffusion\.{name}: .*--accept-changes"):
            resume.check_same_run(changed, run)
        resume.check_same_run(changed, run, accept_changes=True)
    with pytest.raises(ConfigError, match=r"(?s)diffusion\.timesteps: .*another --workdir"):
        resume.check_same_run(recipe(**{"diffusion.timesteps": 500}), run, accept_changes=True)


def test_options_that_the_beginning_did_not_have_may_come(run):
    """A run of an older version is not refused for what is new."""
    config = recipe()
    del config.data["degradation"]
    config_file.save(run, config.to_dict())
    resume.check_same_run(recipe(), run)


@pytest.mark.parametrize("name", ["quickstart_class", "quickstart_hybrid", "quickstart_classifier"])
def test_a_run_of_an_older_version_goes_on_without_a_word(name, tmp_path, capsys):
    """Once there were no transformers, one kind of average, and one latent scale."""
    config = recipes.load(f"{name}:tiny")
    older = config.to_dict()
    for option in ("network", "dit", "latent_scale_kind", "latent_channel_shift", "latent_channel_scale"):
        older.pop(option, None)
    for option in ("kind", "sigma_rel", "snapshot_every", "snapshot_dtype"):
        older["ema"].pop(option)
    for section in [older.get("conditioner", {}), *older.get("conditioner", {}).get("parts", {}).values()]:
        if section.get("kind") == "class":
            section.pop("embedding_std")
    (tmp_path / "config.json").write_text(json.dumps({"version": 2} | older))
    resume.check_same_run(config, tmp_path)
    config_file.save(tmp_path, config.to_dict())
    assert capsys.readouterr().out == ""


def first_stage_run(folder, value):
    """A trained first stage whose parameters are all `value`."""
    config = recipes.load("quickstart_first_stage:tiny")
    config_file.save(folder, config.to_dict())
    params = jax.tree.map(lambda s: np.full(s.shape, value, s.dtype), rundir.params_shapes(config))
    checkpoint.save_from_numpy(folder, 1, {"params": params})
    return folder


def test_frozen_remembers_what_it_was_made_from(tmp_path):
    """A start was killed after frozen/ was written, before config.json was; the next names another first stage."""
    a, b = (first_stage_run(tmp_path / name, value) for name, value in (("a", 0.5), ("b", 0.25)))
    config = recipe(**{"first_stage.checkpoint": str(a)})
    run = tmp_path / "run"
    frozen = setup.frozen(config, run)
    checkpoint.save_tree(run / "frozen", frozen, rundir.frozen_made_from(config, frozen))
    kept = run / "frozen"

    def check(config):
        resume.check_frozen(config, run, setup._frozen_of_source)

    check(config)
    other = recipe(**{"first_stage.checkpoint": str(b)})
    with pytest.raises(ConfigError) as error:
        setup.training_run(other, run)
    text = str(error.value)
    assert f"first_stage.checkpoint: {str(a)!r} there, {str(b)!r} here" in text and f"remove {kept}" in text
    with pytest.raises(ConfigError, match=r"latent_scale: 0\.0 there, 0\.5 here"):
        check(recipe(**{"first_stage.checkpoint": str(a), "latent_scale": 0.5}))
    check(recipe(**{"first_stage.checkpoint": str(a), "batch_size": 4}))  # nothing in it depends on it

    a.rename(tmp_path / "c")
    check(config)  # its source was moved away: the copy counts
    b.rename(a)  # another one in its place
    with pytest.raises(ConfigError, match=r"parameters of first_stage: '\w+' there, '\w+' here"):
        check(config)
