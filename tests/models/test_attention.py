"""Attention modules against the original's outputs. 1e-4 of the output's std, see test_layers.py."""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.models import attention
from tests.golden_tools import load, nchw, nhwc, rel, to_flax, torch_state

IMAGE_CASES = {
    "mod_unet_attnblock_h4": attention.AttentionBlock(4),
    "mod_unet_attnblock_hc32": attention.AttentionBlock(2),
    "mod_unet_attnblock_neworder": attention.AttentionBlock(4, new_order=True),
    "mod_spatial_transformer": attention.SpatialTransformer(4, 16, depth=2),
    "mod_spatial_transformer_nocontext": attention.SpatialTransformer(1, 64),
    "mod_vae_attn": attention.AttnBlock(),
    "mod_vae_linattn": attention.LinearAttention(),
}
TOKEN_CASES = {
    "mod_basic_transformer_block": attention.BasicTransformerBlock(4, 16),
    "mod_geglu_ff": attention.FeedForward(),
    "mod_ff_nogate": attention.FeedForward(gated=False),
}


def restore(case, module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return {"params": to_flax(shapes["params"], torch_state(case))}


@pytest.mark.parametrize("name", IMAGE_CASES)
def test_of_images_equals_the_original(name):
    case, module = load(name), IMAGE_CASES[name]
    context = [jnp.asarray(case.inputs["context"])] if "context" in case.inputs else []
    variables = restore(case, module, jnp.asarray(nhwc(case.inputs["x"])), *context)
    for x, y in (("x", "y"), ("x_small", "y_small")):
        ours = module.apply(variables, jnp.asarray(nhwc(case.inputs[x])), *context)
        assert rel(nchw(ours), case.outputs[y]) < 1e-4, x


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_of_tokens_equals_the_original(name):
    case, module = load(name), TOKEN_CASES[name]
    context = [jnp.asarray(case.inputs["context"])] if "context" in case.inputs else []
    variables = restore(case, module, jnp.asarray(case.inputs["x"]), *context)
    for x, y in (("x", "y"), ("x_small", "y_small")):
        ours = module.apply(variables, jnp.asarray(case.inputs[x]), *context)
        assert rel(ours, case.outputs[y]) < 1e-4, x


def test_cross_attention_with_a_mask():
    case, module = load("mod_cross_attention"), attention.CrossAttention(4, 16)
    x, context = jnp.asarray(case.inputs["x"]), jnp.asarray(case.inputs["context"])
    variables = restore(case, module, x, context)
    assert rel(module.apply(variables, x, context), case.outputs["y"]) < 1e-4
    masked = module.apply(variables, x, context, jnp.asarray(case.inputs["mask"], bool))
    assert rel(masked, case.outputs["y_masked"]) < 1e-4


def test_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="64 channels do not divide into 3 heads"):
        attention.AttentionBlock(3).init(jax.random.key(0), jnp.zeros((1, 2, 2, 64)))
