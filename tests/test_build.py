"""Options of config.diffusion become the schedule and the loss."""

import numpy as np
import pytest

from ldm_jax import build, config_file, recipes, rundir
from ldm_jax.diffusion.schedule import FlowSchedule, make_schedule
from ldm_jax.errors import ConfigError
from ldm_jax.models.dit import DiT
from ldm_jax.models.unet import UNet
from ldm_jax.training import resume, setup


def test_by_default_nothing_is_on():
    ldm = build.ldm(recipes.load("celeba_ldm4"))
    np.testing.assert_array_equal(ldm.schedule.alpha_bar, make_schedule().alpha_bar)
    assert ldm.schedule.prediction == "eps"
    assert (ldm.t_distribution, ldm.offset_noise, ldm.weighting, ldm.min_snr_gamma) == ("uniform", 0.0, "none", 5.0)


def test_a_flow_recipe():
    config = recipes.load("quickstart_ldm:flow_tiny")
    ldm = build.ldm(config)
    assert isinstance(ldm.schedule, FlowSchedule) and ldm.t_distribution == "logit_normal"
    assert setup.task(config).samples.timetable.t[-1] > 0  # trailing: as sample.py
    assert recipes.load("quickstart_ldm:flow").batch_size == recipes.load("quickstart_ldm").batch_size


def test_options_reach_the_model():
    options = {"t_distribution": "logit_normal", "t_mean": 0.5, "t_std": 2.0, "offset_noise": 0.1,
               "weighting": "min_snr", "min_snr_gamma": 3.0, "zero_terminal_snr": True}  # fmt: skip
    ldm = build.ldm(recipes.load("quickstart_ldm", [f"--config.diffusion.{n}={v}" for n, v in options.items()]))
    assert {name: getattr(ldm, name) for name in options if name != "zero_terminal_snr"} == {
        name: value for name, value in options.items() if name != "zero_terminal_snr"
    }
    assert ldm.schedule.pure_noise


@pytest.mark.parametrize(
    "options, message",
    [
        (["kind=flow"], "prediction='v' \\(not 'eps'\\)"),
        (["kind=flow", "prediction=v", "zero_terminal_snr=True"], "zero_terminal_snr=False"),
        (["kind=flows"], "config.diffusion.kind='flows' is not one of diffusion, flow"),
        (["zero_terminal_snr=True"], "prediction='eps'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        build.ldm(recipes.load("celeba_ldm4", [f"--config.diffusion.{option}" for option in options]))


def test_runs_from_before_transformers_have_the_unet_and_go_on(tmp_path):
    config = recipes.load("quickstart_ldm:tiny")
    older = config.to_dict()
    del older["network"], older["dit"]
    config_file.save(tmp_path, older)
    assert isinstance(build.denoiser(rundir.config_of(tmp_path)), UNet)
    resume.check_same_run(config, tmp_path)
    assert isinstance(build.denoiser(recipes.load("quickstart_ldm:tiny", ["--config.network.kind=dit"])), DiT)
    with pytest.raises(ConfigError, match=r"config\.network\.kind='mlp' is not one of unet, dit"):
        build.denoiser(recipes.load("quickstart_ldm:tiny", ["--config.network.kind=mlp"]))


def test_runs_from_before_these_options_load_and_go_on(tmp_path):
    config = recipes.load("quickstart_ldm:tiny")
    older = config.to_dict()
    for name in config_file.YOUNGER_DIFFUSION:
        del older["diffusion"][name]
    config_file.save(tmp_path, older)
    assert config_file.load(tmp_path)["diffusion"] == config.diffusion.to_dict()
    assert not config_file.changes(tmp_path, config.to_dict())
    classifier = recipes.load("quickstart_classifier:tiny")
    config_file.save(tmp_path / "classifier", classifier.to_dict())
    assert not config_file.changes(tmp_path / "classifier", classifier.to_dict())
