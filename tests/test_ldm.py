"""The diffusion loss: its draws, and the loss of a flow against the formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.schedule import make_flow_schedule, make_schedule
from ldm_jax.keys import normal, sample_keys, stream
from ldm_jax.ldm import LDM, NOISE_STREAM, LatentSpace, measure_channels
from ldm_jax.models.autoencoder import IdentityFirstStage


class Half(nn.Module):
    """In place of the UNet: half of what it sees."""

    @nn.compact
    def __call__(self, z, t, context=None, *, train=False):
        return z / 2


def made(schedule=None, **options):
    return LDM(IdentityFirstStage(), Half(), schedule or make_schedule(), **options)


KEYS = sample_keys(jax.random.key(0), 20_000)


def test_without_options_the_draws_are_uniform_steps_and_standard_noise():
    t, noise = made().draw(KEYS, (2, 2, 3))
    assert t.min() == 0 and t.max() == 999 and abs(t.mean() - 499.5) < 10
    np.testing.assert_array_equal(noise, normal(stream(KEYS, NOISE_STREAM), (2, 2, 3)))


def test_logit_normal_steps():
    t, _ = made(t_distribution="logit_normal", t_mean=-0.5, t_std=0.8).draw(KEYS, (1,))
    assert t.min() >= 0 and t.max() <= 999
    logit = np.log((np.asarray(t) + 0.5) / (1000 - (np.asarray(t) + 0.5)))
    # 20,000 draws: standard error 0.006 of the mean, 0.004 of the standard deviation
    assert abs(logit.mean() + 0.5) < 0.03 and abs(logit.std() - 0.8) < 0.02


def test_offset_noise_is_shared_by_the_pixels_of_a_channel():
    plain, offset = (np.asarray(made(offset_noise=x).draw(KEYS, (4, 4, 2))[1]) for x in (0.0, 0.3))
    further = offset - plain
    np.testing.assert_allclose(further, np.broadcast_to(further[:, :1, :1], further.shape), atol=1e-6)
    shift = further[:, 0, 0]
    assert abs(shift.std() - 0.3) < 0.01 and abs(shift.mean()) < 0.01
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.03  # channels are apart


def test_each_channel_has_its_own_shift_and_scale():
    """z' = (z - shift) scale, there and back; measured over batches, latents have mean 0 and variance 1."""
    space, rng = LatentSpace(IdentityFirstStage()), np.random.default_rng(0)
    mean, std = np.array([3.0, -0.5, 0.0], np.float32), np.array([0.1, 2.0, 1.0], np.float32)
    drift = rng.normal(size=(4, 1, 1, 1, 1))  # of whole batches: it counts as spread
    images = np.float32(mean + std * (drift + rng.normal(size=(4, 8, 5, 5, 3))))
    unit = {"first_stage": {}, "latent_scale": jnp.float32(0.5)}  # as a run begins; not used
    shift, scale = measure_channels(space, unit, ({"image": jnp.asarray(x)} for x in images), jax.random.key(0))
    np.testing.assert_allclose(shift, images.mean((0, 1, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scale, 1 / images.std((0, 1, 2, 3)), rtol=1e-5)
    frozen = {"first_stage": {}, "latent_shift": shift, "latent_scale": scale}
    z = np.stack([space.encode(frozen, jnp.asarray(x)) for x in images])
    np.testing.assert_allclose(z, (images - shift) * scale, rtol=1e-5, atol=1e-5)
    assert np.allclose(z.mean((0, 1, 2, 3)), 0, atol=1e-4) and np.allclose(z.std((0, 1, 2, 3)), 1, atol=1e-4)
    np.testing.assert_allclose(space.decode(frozen, jnp.asarray(z[0])), images[0], rtol=1e-5, atol=1e-5)
    moments = space.latents(frozen, {"image": jnp.asarray(images[1])}, KEYS[:8])
    np.testing.assert_array_equal(moments, z[1])
    flat = images.copy()
    flat[..., 1] = 0.25
    with pytest.raises(ValueError, match="is the first stage trained"):
        measure_channels(space, unit, ({"image": jnp.asarray(x)} for x in flat), jax.random.key(0))


def test_the_loss_of_a_flow_is_that_of_its_velocity():
    ldm = made(make_flow_schedule(1000), weighting="min_snr", min_snr_gamma=2.0, offset_noise=0.1)
    image = jax.random.normal(jax.random.key(1), (6, 4, 4, 3))
    frozen, keys = {"first_stage": {}, "latent_scale": jnp.float32(1)}, KEYS[:6]
    terms = ldm.loss_terms({"unet": {}, "conditioner": {}}, frozen, {"image": image}, keys, train=True)
    t, noise = ldm.draw(keys, (4, 4, 3))
    s = ((t + 1) / 1000)[:, None, None, None]
    output = ((1 - s) * image + s * noise) / 2
    simple = jnp.mean((output - (noise - image)) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(terms["loss_simple"], simple, rtol=1e-4)
    s = s[:, 0, 0, 0]
    weight = jnp.minimum(((1 - s) / s) ** 2, 2.0) * s**2
    np.testing.assert_allclose(terms["loss"], weight * simple, rtol=1e-3)


def test_wrong_options_are_named():
    for options, message in (
        (dict(t_distribution="cosine"), "'cosine' is not one of uniform, logit_normal"),
        (dict(t_std=0.0), "t_std=0.0 must be above 0"),
        (dict(min_snr_gamma=0.0), "min_snr_gamma=0.0 must be above 0"),
        (dict(offset_noise=-1.0), "offset_noise=-1.0 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**options)
