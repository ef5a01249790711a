"""Wrong shapes and types are refused in tests, by the annotations (conftest.py)."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from ldm_jax import losses
from ldm_jax.diffusion import guidance
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.models import kernels
from ldm_jax.models.autoencoder import AutoencoderKL
from ldm_jax.models.layers import AE_EPS, GroupNorm32
from ldm_jax.models.unet import UNet

KEY = jax.random.key(0)
Z, T = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2, jnp.int32)


def unet(z=Z, t=T, context=None, y=None):
    model = UNet(32, 3, 1, (1, 2), (2,), num_heads=1, num_classes=5, use_spatial_transformer=True, context_dim=6)
    context = jnp.zeros((2, 4, 6)) if context is None else context
    return jax.eval_shape(model.init, KEY, z, t, context, y=jnp.zeros(2, jnp.int32) if y is None else y)


def test_right_shapes_pass():
    assert unet()["params"]


@pytest.mark.parametrize("wrong", [
    dict(y=jnp.zeros((2, 1), jnp.int32)), dict(y=jnp.zeros(3, jnp.int32)), dict(y=jnp.zeros(2)),
    dict(t=jnp.zeros((), jnp.int32)), dict(t=jnp.zeros(3, jnp.int32)), dict(z=Z[0]), dict(z=Z.astype(jnp.int32)),
    dict(context=jnp.zeros((2, 6))), dict(context=jnp.zeros((1, 4, 6))),
])  # fmt: skip
def test_the_unet_refuses(wrong):
    with pytest.raises(TypeCheckError, match=next(iter(wrong))):
        unet(**wrong)


@pytest.mark.parametrize("call", [
    lambda: make_schedule().add_noise(Z, Z[:, :4], T),
    lambda: make_schedule().add_noise(Z, Z, T.astype(jnp.float32)),
    lambda: losses.psnr(Z, Z[:1]),
    lambda: losses.generator_loss(Z),
    lambda: guidance.classifier_free_guidance("no network", cond=None),
    lambda: guidance.classifier_free_guidance(lambda z, t, cond: z[:1], cond=None)(Z, T),
    lambda: kernels.attend(*(jnp.zeros((1, 2, n, 8)) for n in (4, 5, 6))),
    lambda: AutoencoderKL(32, (1, 2), 1).init(KEY, jnp.zeros((2, 16, 16, 3)), jax.random.split(KEY, 3)),
    lambda: GroupNorm32(AE_EPS, dtype=3),
])  # fmt: skip
def test_others_refuse(call):
    with pytest.raises(TypeCheckError):
        call()
