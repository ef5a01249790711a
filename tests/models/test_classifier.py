import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import tree
from ldm_jax.models.attention import AttentionPool
from ldm_jax.models.classifier import EncoderUNet
from ldm_jax.models.unet import UNet

FIELDS = dict(
    model_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_downsamples=(2,), num_head_channels=32
)


def shapes(module, size=8):
    z, t = jnp.zeros((2, size, size, 3)), jnp.zeros(2, jnp.int32)
    return jax.eval_shape(lambda key: module.init(key, z, t), jax.random.key(0))["params"]


def test_it_is_the_unets_way_down_and_a_head():
    ours = tree.flatten(shapes(EncoderUNet(out_channels=7, **FIELDS)))
    whole = tree.flatten(shapes(UNet(out_channels=3, **FIELDS)))
    below = {n: s.shape for n, s in whole.items() if n.startswith(("time_embed", "input_blocks", "middle_block"))}
    head = {n: s.shape for n, s in ours.items() if n not in below}
    assert {n: ours[n].shape for n in below} == below
    assert head == {
        "out_0/scale": (64,), "out_0/bias": (64,), "out_2/positional_embedding": (17, 64),
        "out_2/qkv_proj/kernel": (1, 64, 192), "out_2/qkv_proj/bias": (192,),
        "out_2/c_proj/kernel": (1, 64, 7), "out_2/c_proj/bias": (7,),
    }  # fmt: skip


def test_attention_pool_is_the_means_view_of_all_positions():
    """Against the formula, position by position, for two heads of width 2."""
    rng = np.random.default_rng(0)
    module, x = AttentionPool(3, 2), jnp.asarray(rng.standard_normal((2, 2, 3, 4)), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), x)
    p = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), like)["params"]
    found = module.apply({"params": p}, x)
    for image, logits in zip(x, found):
        flat = image.reshape(6, 4)
        tokens = np.concatenate([flat.mean(0, keepdims=True), flat]) + p["positional_embedding"]
        q, k, v = np.split(tokens @ p["qkv_proj"]["kernel"][0] + p["qkv_proj"]["bias"], 3, axis=-1)
        heads = []
        for cut in (slice(0, 2), slice(2, 4)):
            weights = np.exp(k[:, cut] @ q[0, cut] / np.sqrt(2))
            heads.append((weights / weights.sum()) @ v[:, cut])
        expected = np.concatenate(heads) @ p["c_proj"]["kernel"][0] + p["c_proj"]["bias"]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_adaptive_pooling_takes_any_size_and_mistakes_are_named():
    adaptive = EncoderUNet(out_channels=7, pool="adaptive", **FIELDS)
    assert jax.tree.map(jnp.shape, shapes(adaptive)) == jax.tree.map(jnp.shape, shapes(adaptive, 16))
    with pytest.raises(ValueError, match="pool='mean' is not one of attention, adaptive"):
        shapes(EncoderUNet(out_channels=7, pool="mean", **FIELDS))
    with pytest.raises(ValueError, match="multiples of 2"):
        shapes(adaptive, 7)
