"""Settings of diffusers' classes: what they mean, and that those which nothing here follows are named."""

import json
import re

import pytest

from ldm_jax.convert import diffusers_settings as settings
from ldm_jax.convert.diffusers import scheduler_config
from ldm_jax.errors import UsageError
from tests.convert.conversion_tools import recipe
from tests.convert.test_diffusers import GOLDEN, component

KINDS = {"celeba/vqvae": "VQModel", "vq_f8": "VQModel", "text/vqvae": "AutoencoderKL", "celeba/unet": "UNet2DModel",
         "text/unet": "UNet2DConditionModel"}  # fmt: skip


@pytest.mark.parametrize("model", KINDS)
def test_defaults_are_those_of_the_library(model):
    """The library records which settings of a model are its class's defaults."""
    found = GOLDEN[model]["config"]
    defaults = {name: found[name] for name in found["_use_default_values"] if name in settings.DEFAULTS[KINDS[model]]}
    assert len(defaults) >= 8
    assert {name: settings.DEFAULTS[KINDS[model]][name] for name in defaults} == defaults
    unknown = found.keys() - settings.DEFAULTS[KINDS[model]].keys()
    assert {name for name in unknown if name[0] != "_"} <= settings._NETWORK_FREE


def check(tmp_path, model, **changes):
    ours = component(model)
    settings.check(tmp_path / "config.json", GOLDEN[model]["config"] | changes, ours.kind, ours.config)


@pytest.mark.parametrize(
    "model,key,value",
    [
        ("celeba/unet", "attn_norm_num_groups", 8),
        ("celeba/unet", "norm_num_groups", 16),
        ("celeba/unet", "norm_eps", 1e-6),
        ("celeba/unet", "add_attention", False),
        ("celeba/unet", "num_class_embeds", 10),
        ("celeba/unet", "something_new", 1),
        ("text/unet", "timestep_post_act", "silu"),
        ("text/unet", "norm_eps", 1e-6),
        ("text/unet", "num_attention_heads", 4),
        ("text/unet", "only_cross_attention", [True, True, True, False]),
        ("vq_f8", "lookup_from_codebook", True),
        ("vq_f8", "norm_type", "spatial"),
        ("vq_f8", "norm_num_groups", 16),
        ("vq_f8", "shift_factor", 0.0609),
        ("vq_f8", "latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("text/vqvae", "use_quant_conv", False),
    ],
)
def test_a_setting_that_nothing_follows_is_named(tmp_path, model, key, value):
    with pytest.raises(UsageError) as error:
        check(tmp_path, model, **{key: value})
    assert f"{key}: {json.dumps(value)}" in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "key,value",
    [("encoder_attention_heads", 4), ("head_dim", 32), ("activation_function", "relu"), ("something_new", True)],
)
def test_the_text_encoder(tmp_path, key, value):
    check(tmp_path, "text/bert")
    with pytest.raises(UsageError, match=f"{key}: {json.dumps(value)}"):
        check(tmp_path, "text/bert", **{key: value})


@pytest.mark.parametrize(
    "model,changes",
    [
        ("vq_f8", {"vq_embed_dim": None, "sample_size": 512, "force_upcast": True}),
        ("text/unet", {"use_linear_projection": True, "upcast_attention": True, "only_cross_attention": [False] * 4}),
        ("text/unet", {"attention_head_dim": [8, 8, 8, 8], "act_fn": "swish"}),
        ("celeba/unet", {"attn_norm_num_groups": 32, "an_old_setting": None, "dropout": 0.1}),
    ],
)
def test_other_ways_to_write_the_same(tmp_path, model, changes):
    check(tmp_path, model, **changes)


def test_an_older_file_is_silent_about_newer_settings(tmp_path):
    old = {
        k: v for k, v in GOLDEN["vq_f8"]["config"].items() if k not in GOLDEN["vq_f8"]["config"]["_use_default_values"]
    }
    settings.check(tmp_path / "config.json", old, "VQModel", GOLDEN["vq_f8"]["config"])


def scheduler(tmp_path, config="celeba_ldm4", **changes):
    expected = scheduler_config(recipe(config).diffusion)
    found = {k: v for k, v in (expected | changes).items() if v != "absent"}
    settings.check_scheduler(tmp_path / "scheduler_config.json", found, expected)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas: \[0.1, 0.2\]"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: true in the folder, false by the config"),
        ({"clip_sample": True}, "clip_sample: true"),
        ({"clip_sample": "absent"}, "clip_sample: true"),
        ({"thresholding": True}, "thresholding: true"),
        ({"beta_start": "absent"}, "beta_start: 0.0001 in the folder, 0.0015 by the config"),
        ({"beta_schedule": "sigmoid"}, 'beta_schedule: "sigmoid"'),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, '_class_name: "FlowMatchEuler'),
        ({"shift": 3.0}, "shift: 3.0"),
    ],
)
def test_schedulers(tmp_path, changes, message):
    scheduler(tmp_path)
    with pytest.raises(UsageError, match=message) as error:
        scheduler(tmp_path, **changes)
    assert "scheduler_config.json" in str(error.value)


def test_schedulers_that_walk_otherwise(tmp_path):
    """How steps are chosen is no part of the model; PNDM does not clip where its file is silent."""
    scheduler(tmp_path, timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True, skip_prk_steps=True)
    scheduler(tmp_path, _class_name="PNDMScheduler", clip_sample="absent", timestep_values=None, tensor_format="pt")


def test_other_pipelines(tmp_path):
    file = tmp_path / "model_index.json"
    file.write_text(json.dumps({"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"]}))
    settings.check_index(file)
    file.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UsageError, match=re.escape(f'{file} has _class_name: "StableDiffusionPipeline"')):
        settings.check_index(file)
    file.write_text(json.dumps({"_class_name": "LDMPipeline", "safety_checker": ["a", "B"], "image_encoder": None}))
    with pytest.raises(UsageError, match=r'safety_checker: \["a", "B"\]'):
        settings.check_index(file)
