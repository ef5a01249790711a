"""Starts other than noise, on a Gaussian whose eps is known exactly: strengths, inversion, interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import starts
from ldm_jax.diffusion.samplers import SAMPLERS, ddim
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.timetable import make_timetable, pad

SCHEDULE = make_schedule()
TIMETABLE = make_timetable(SCHEDULE, 20)
Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
KEYS = jax.random.split(jax.random.key(1), 3)
SPREAD = 0.5


def denoise(z, t):
    """Bent, so that inversion is no linear problem."""
    return gaussian(z, t) + 0.3 * jnp.sin(3 * z)


def test_strength_is_the_share_of_the_last_steps():
    for strength, steps in ((1, 20), (0.6, 12), (0.5, 10), (0.01, 1)):
        short = starts.shortened(TIMETABLE, strength)
        for entries, all_entries in zip(short, TIMETABLE):
            np.testing.assert_array_equal(entries, all_entries[20 - steps :])
    for strength in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match=f"strength {strength} must lie"):
            starts.shortened(TIMETABLE, strength)


def test_noise_has_the_level_of_the_first_step():
    keys = jax.random.split(jax.random.key(2), 4)
    z = jnp.full((4, 64, 64, 4), 2.0)
    for strength in (0.2, 0.6, 1.0):
        short = starts.shortened(TIMETABLE, strength)
        z_t, a = starts.noised(z, keys, short), short.alpha_bar[0]
        np.testing.assert_allclose(z_t.mean(), 2 * np.sqrt(a), atol=0.02)
        np.testing.assert_allclose(z_t.std(), np.sqrt(1 - a), rtol=0.01)
        np.testing.assert_array_equal(z_t[1], starts.noised(z[1:2], keys[1:2], short)[0])


def gaussian(z, t):
    """The exact eps of z ~ N(0, SPREAD^2)."""
    a = jnp.asarray(SCHEDULE.alpha_bar, jnp.float32)[t][:, None, None, None]
    return jnp.sqrt(1 - a) * z / (a * SPREAD**2 + 1 - a)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_continues_from_the_noised_picture(name):
    """The probability flow takes z_t = sqrt(a) z + sqrt(1-a) noise to SPREAD / std(z_t) z_t; noise makes it a draw
    whose correlation with the picture z is a SPREAD^2 / var(z_t)."""
    picture = SPREAD * jax.random.normal(jax.random.key(7), (3, 16, 16, 4))
    timetable = make_timetable(SCHEDULE, 100, SAMPLERS[name].spacing)

    @jax.jit
    def run(short):
        z_t = starts.noised(picture, KEYS, short)
        return z_t, SAMPLERS[name](gaussian, z_t, short, KEYS)

    for strength in (0.3, 0.7):
        short = starts.shortened(timetable, strength)
        z_t, made = run(short)
        a = short.alpha_bar[0]
        variance = a * SPREAD**2 + 1 - a
        if SAMPLERS[name].draws_noise and not SAMPLERS[name].takes_eta:
            np.testing.assert_allclose(jnp.mean(made * picture), a * SPREAD**4 / variance, atol=0.02)
            np.testing.assert_allclose(made.std(), SPREAD, rtol=0.1)  # its variance is that of known x0, too small
        else:
            np.testing.assert_allclose(made, SPREAD / np.sqrt(variance) * z_t, rtol=0.05)


@pytest.mark.parametrize("spacing", ["even", "original"])
def test_inversion_leads_back(spacing):
    """Sampling from the inverted latent gives the latent; each iteration brings it closer."""
    timetable = make_timetable(SCHEDULE, 20, spacing)
    errors = []
    start = jax.jit(starts.invert, static_argnums=(0, 3))
    sample = jax.jit(lambda z_T: ddim(denoise, z_T, timetable, None))
    for iterations in (1, 3, 10):
        z_T = start(denoise, Z, timetable, iterations)
        errors.append(float(jnp.abs(sample(z_T) - Z).max()))
    assert errors[2] < 2e-4 and errors[2] < 0.1 * errors[1] < 0.03 * errors[0], errors


def test_inversion_of_a_gaussian_is_standard_noise():
    """On N(0, s^2) the probability flow maps z to z / s (1 - alpha_bar_T is almost 1): the exact answer."""

    z_T = starts.invert(gaussian, Z * SPREAD, make_timetable(SCHEDULE, 1000))
    np.testing.assert_allclose(z_T, Z, rtol=2e-2)


def test_inversion_skips_padding_and_counts_iterations():
    np.testing.assert_allclose(
        starts.invert(denoise, Z, pad(TIMETABLE, 25)), starts.invert(denoise, Z, TIMETABLE), rtol=1e-6
    )
    with pytest.raises(ValueError, match="at least 1 iteration, got 0"):
        starts.invert(denoise, Z, TIMETABLE, 0)


def test_the_great_circle():
    one, other = jnp.zeros((2, 1, 1)).at[0].set(3.0), jnp.zeros((2, 1, 1)).at[1].set(3.0)
    path = starts.slerp(one, other, np.linspace(0, 1, 4))[..., 0, 0]
    angles = np.radians([0, 30, 60, 90])
    np.testing.assert_allclose(path, 3 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-6)
    np.testing.assert_allclose(starts.slerp(one, one, [0.3]), one[None], rtol=1e-6)
    np.testing.assert_allclose(starts.slerp(one, 2 * one, [0.0, 0.5, 1.0])[:, 0, 0, 0], [3, 4.5, 6], rtol=1e-6)


def test_a_path_between_noises_keeps_their_spread():
    one, other = jax.random.normal(jax.random.key(5), (2, 32, 32, 4))
    path = starts.slerp(one, other, np.linspace(0, 1, 5))
    np.testing.assert_allclose(path.std((1, 2, 3)), 1, atol=0.03)
    np.testing.assert_allclose(path[0], one, atol=1e-6)
    np.testing.assert_allclose(path[-1], other, atol=1e-6)
