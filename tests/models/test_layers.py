"""Layers against the original's outputs. 1e-4 of the output's std; two correct float32 runs differ by ~1e-5.

The `*_small` inputs have standard deviations near sqrt(eps) of the norms, so that a wrong eps is seen.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.models import layers
from tests.golden_tools import load, nchw, nhwc, rel, to_flax, torch_state

UNET_CASES = {
    "mod_unet_resblock_same": layers.ResBlock(64),
    "mod_unet_resblock_96": layers.ResBlock(96),
    "mod_unet_resblock_ssn": layers.ResBlock(64, use_scale_shift_norm=True),
    "mod_unet_resblock_up": layers.ResBlock(64, up=True),
    "mod_unet_resblock_down_ssn": layers.ResBlock(64, use_scale_shift_norm=True, down=True),
    "mod_unet_downsample": layers.Downsample(),
    "mod_unet_upsample": layers.Upsample(),
    "mod_vae_resnet_64_96": layers.AEResnetBlock(96),
    "mod_vae_up": layers.Upsample(),
    "mod_vae_down": layers.AEDownsample(),
}


@pytest.mark.parametrize("name", UNET_CASES)
def test_equals_the_original(name):
    case, module = load(name), UNET_CASES[name]
    emb = [jnp.asarray(case.inputs["emb"])] if "emb" in case.inputs else []
    images = {k: jnp.asarray(nhwc(v)) for k, v in case.inputs.items() if k.startswith("x")}
    shapes = jax.eval_shape(module.init, jax.random.key(0), next(iter(images.values())), *emb)
    params = to_flax(shapes["params"], torch_state(case))
    for key, x in images.items():
        y = module.apply({"params": params}, x, *emb)
        assert rel(nchw(y), case.outputs["y" + key[1:]]) < 1e-4, key


def test_timestep_embedding_equals_the_original():
    case = load("timestep_embedding")
    t = jnp.asarray(case.inputs["t"])
    for dim in (33, 128, 160, 192, 224, 256, 320, 448):
        # The argument reaches 999 radians, of which one float32 step is 6e-5.
        assert rel(layers.timestep_embedding(t, dim), case.outputs[f"dim{dim}"]) < 2e-4, dim


@pytest.mark.parametrize("groups", [32, 8])
def test_group_norm_is_exact_at_large_means(groups):
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 64)) + 1000.0
    module = layers.GroupNorm32(1e-5, groups)
    y = module.apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, jnp.asarray(x, jnp.float32))
    x = np.asarray(x, np.float32).astype(np.float64).reshape(2, 30, groups, -1)
    expected = (x - x.mean((1, 3), keepdims=True)) / np.sqrt(x.var((1, 3), keepdims=True) + 1e-5)
    # The mean's own rounding is a few 6e-5; E[x^2] - E[x]^2 in float32 would be off by 3e-2.
    assert np.abs(np.asarray(y) - expected.reshape(y.shape)).max() < 1e-3


def test_space_to_depth_puts_the_pixels_of_a_patch_side_by_side():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.float32)
    folded = layers.space_to_depth(x, 2)
    assert folded.shape == (2, 2, 3, 12)
    assert np.array_equal(folded[1, 1, 2], x[1, 2:4, 4:6].ravel())
    assert np.array_equal(layers.depth_to_space(folded, 2), x)


def test_group_norm_names_the_channels_that_do_not_divide():
    for groups in (32, 0):
        with pytest.raises(
            ConfigError, match=rf"48 channels in {groups} groups.*another number of groups \(norm_groups"
        ):
            layers.GroupNorm32(1e-5, groups).init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)))


def test_initial_values_follow_torch():
    inputs = jnp.zeros((1, 4, 4, 32)), jnp.zeros((1, 128))
    params = layers.ResBlock(64).init(jax.random.key(0), *inputs)["params"]
    bound = 1 / np.sqrt(9 * 32)
    for leaf in params["in_layers_2"].values():
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    assert not any(np.any(leaf) for leaf in params["out_layers_3"].values())
