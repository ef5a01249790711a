"""The original's key layout, against the keys and shapes of all its configurations."""

import numpy as np
import pytest

from ldm_jax import build, tree
from ldm_jax.convert import compvis, names
from tests.convert.conversion_tools import checkpoint, manifests, recipe, template

FIRST_STAGES = ("kl-f16", "kl-f32", "kl-f4", "kl-f8", "vq-f16", "vq-f4-noattn", "vq-f4", "vq-f8-n256", "vq-f8")
RECIPES = {
    **{f"first_stage__{name}": f"first_stage_{name.replace('-', '_')}" for name in FIRST_STAGES},
    "configs__autoencoder__autoencoder_kl_16x16x16": "first_stage_kl_f16",
    "configs__autoencoder__autoencoder_kl_32x32x4": "first_stage_kl_f8",
    "configs__autoencoder__autoencoder_kl_64x64x3": "first_stage_kl_f4",
    "configs__autoencoder__autoencoder_kl_8x8x64": "first_stage_kl_f32",
    "configs__latent-diffusion__celebahq-ldm-vq-4": "celeba_ldm4",
    "configs__latent-diffusion__cin-ldm-vq-f8": "imagenet_ldm8",
    "configs__latent-diffusion__cin256-v2": "imagenet_ldm4",
    "configs__latent-diffusion__ffhq-ldm-vq-4": "ffhq_ldm4",
    "configs__latent-diffusion__lsun_bedrooms-ldm-vq-4": "lsun_bedrooms_ldm4",
    "configs__latent-diffusion__lsun_churches-ldm-kl-8": "lsun_churches_ldm8",
    "configs__latent-diffusion__txt2img-1p4B-eval": "text2img_ldm8",
    "configs__retrieval-augmented-diffusion__768x768": "rdm_768_ldm16",
    "ldm__bsr_sr": "imagenet_superres_ldm4",
    "ldm__celeba256": "celeba_ldm4",
    "ldm__cin256": "imagenet_ldm8",
    "ldm__ffhq256": "ffhq_ldm4",
    "ldm__inpainting_big": "places_inpainting_big_ldm4",
    "ldm__layout2img-openimages256": "openimages_layout_ldm4",
    "ldm__lsun_beds256": "lsun_bedrooms_ldm4",
    "ldm__lsun_churches256": "lsun_churches_ldm8",
    "ldm__semantic_synthesis256": "landscapes_semantic_ldm4",
    "ldm__semantic_synthesis512": "landscapes_semantic_512_ldm4",
    "ldm__text2img256": "text2img_ldm4",
}
# Seconds of tracing each; or with the same parts as one that is not here.
LARGE = {"imagenet_ldm8", "openimages_layout_ldm4", "text2img_ldm4", "text2img_ldm8", "rdm_768_ldm16",
         "places_inpainting_big_ldm4", "lsun_churches_ldm8", "imagenet_ldm4"}  # fmt: skip
ALIKE = {"ffhq_ldm4", "lsun_bedrooms_ldm4", "landscapes_semantic_512_ldm4", "first_stage_vq_f8_n256",
         "first_stage_kl_f16", "first_stage_kl_f32"}  # fmt: skip
CASES = [pytest.param(k, v, marks=[pytest.mark.slow] * (v in LARGE | ALIKE), id=k) for k, v in sorted(RECIPES.items())]


def test_every_configuration_of_the_original_has_its_recipe():
    assert RECIPES.keys() == manifests().keys() and len(RECIPES) == 32


@pytest.mark.parametrize("model,name", CASES)
def test_every_key_is_used_and_every_leaf_filled(model, name):
    """At full size; arrays of one number take no memory."""
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifests()[model].items()}
    weights = template(name, ema=compvis.has_ema(state))
    if "latent_scale" in weights and "scale_factor" not in state:
        weights["latent_scale"] = {}
    filled, beside = compvis.split(state, weights)
    assert not tree.compare(filled, weights)
    leaves = tree.flatten(filled)
    back = {key: names.torch_shape(path, leaves[path].shape) for path, key in compvis.original_keys(weights).items()}
    assert back.keys() | beside.keys() == state.keys() and not back.keys() & beside.keys()
    assert all(shape == tuple(manifests()[model][key]) for key, shape in back.items())


def test_names():
    assert compvis.original_key("unet/input_blocks_4_0/in_layers_0/scale") == (
        "model.diffusion_model.input_blocks.4.0.in_layers.0.weight"
    )
    assert compvis.original_key("ema/time_embed_0/kernel") == "model_ema.diffusion_modeltime_embed0weight"
    assert compvis.original_key("conditioner/embedding/embedding") == "cond_stage_model.embedding.weight"
    assert compvis.original_key("discriminator/batch_stats/main_3/mean") == "loss.discriminator.main.3.running_mean"
    assert compvis.original_key("latent_scale") == "scale_factor"


def test_schedule_buffers_are_the_originals():
    from tests.golden_tools import load

    case = load("sched_linear_0.0015_0.0195_1000_eps_v0")
    ours = compvis.schedule_buffers(build.schedule(recipe("celeba_ldm4")).betas)
    shared = ours.keys() & case.outputs.keys()
    assert len(shared) >= 10
    for key in shared:
        np.testing.assert_allclose(ours[key], case.outputs[key], rtol=2e-6, err_msg=key)


def test_another_schedule_is_refused():
    state = checkpoint("celeba_ldm4:tiny")
    compvis.check_schedule(state, build.schedule(recipe("celeba_ldm4")).betas)
    with pytest.raises(ValueError, match=r"1000 steps from 0\.0015 to 0\.0195, .* 1000 steps from 0\.0015 to 0\.0155"):
        compvis.check_schedule(state, build.schedule(recipe("imagenet_superres_ldm4")).betas)
    half = {"betas": state["betas"].astype(np.float16)}
    compvis.check_schedule(half, build.schedule(recipe("celeba_ldm4")).betas)


def test_strange_keys_are_not_swallowed():
    state = checkpoint("first_stage_vq_f4:tiny") | {"loss.discriminator.extra.weight": np.ones(1, np.float32)}
    with pytest.raises(ValueError, match=r"unexpected \(1\):\n  loss\.discriminator\.extra\.weight"):
        compvis.split(state, template("first_stage_vq_f4:tiny"))
