"""The rule between parameter trees and PyTorch state dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import tree
from ldm_jax.convert import names
from ldm_jax.models.autoencoder import VQModel
from ldm_jax.models.unet import UNet
from tests.golden_tools import load, manifest, torch_state


@pytest.mark.parametrize(
    "path,key",
    [
        ("input_blocks_4_0/in_layers_0/scale", "input_blocks.4.0.in_layers.0.weight"),
        ("down_0_block_1/conv1/kernel", "down.0.block.1.conv1.weight"),
        ("decoder/up_2_upsample/conv/bias", "decoder.up.2.upsample.conv.bias"),
        ("encoder/mid_block_1/norm1/scale", "encoder.mid.block_1.norm1.weight"),
        ("mid_attn_1/q/kernel", "mid.attn_1.q.weight"),
        ("transformer_blocks_0/ff/net_0_proj/kernel", "transformer_blocks.0.ff.net.0.proj.weight"),
        ("attn1/to_out_0/bias", "attn1.to_out.0.bias"),
        ("quantize/embedding/embedding", "quantize.embedding.weight"),
        ("batch_stats/main_3/mean", "main.3.running_mean"),
        ("params/main_3/scale", "main.3.weight"),
    ],
)
def test_keys(path, key):
    assert names.torch_key(path) == key


@pytest.mark.parametrize("shape,torch_shape", [((4, 5), (5, 4)), ((1, 4, 5), (5, 4, 1)), ((3, 2, 4, 5), (5, 4, 3, 2))])
def test_kernels_there_and_back(shape, torch_shape):
    ours = np.random.default_rng(0).normal(size=shape)
    torch = names.to_torch_array("a/kernel", ours)
    assert torch.shape == torch_shape
    assert np.array_equal(names.from_torch_array("a/kernel", torch, shape), ours)


def test_axes_of_size_one():
    ours = np.arange(6.0).reshape(2, 3)
    torch = names.to_torch_array("a/kernel", ours, (3, 2, 1, 1))
    assert torch.shape == (3, 2, 1, 1) and torch[2, 0, 0, 0] == ours[0, 2]
    assert np.array_equal(names.from_torch_array("a/kernel", torch, (2, 3)), ours)
    with pytest.raises(ValueError, match="expected"):
        names.to_torch_array("a/kernel", ours, (2, 3, 1, 1))


def first_stage():
    return jax.eval_shape(VQModel().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_first_stage_has_the_names_and_shapes_of_the_original():
    ours = tree.flatten(first_stage()["params"])
    keys = {k: v for k, v in manifest("first_stage__vq-f4").items() if not k.startswith("loss.")}
    assert {names.torch_key(path) for path in ours} == set(keys)


def test_state_dict_there_and_back():
    case = load("mod_unet_tiny_st_nolegacy")
    module = UNet(32, 4, 1, (1, 2), (1, 2), num_heads=8, use_spatial_transformer=True, context_dim=24, legacy=False)
    inputs = jnp.zeros((1, 4, 4, 4)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 2, 24))
    template = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    state = torch_state(case)
    variables = names.from_torch(state, template)
    assert not tree.compare(variables, template)
    for back in (names.to_torch(variables), names.to_torch(variables["params"])):
        assert back.keys() == state.keys()
        assert all(np.array_equal(back[key], state[key]) for key in state)


def test_errors_list_every_key():
    template = {"a": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}, "b": {"bias": jnp.zeros(1)}}
    state = {"a.weight": np.zeros((2, 3)), "c.weight": np.zeros(1), "d.num_batches_tracked": np.zeros(())}
    with pytest.raises(ValueError) as error:
        names.from_torch(state, template)
    text = str(error.value)
    assert "missing (1):\n  b.bias" in text and "unexpected (1):\n  c.weight" in text
    assert "a.weight: shape (2, 3), expected (3, 2)" in text
