"""The denoiser that samplers call, made of a network in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import generate
from ldm_jax.conditions.base import Cond, ConditionNetwork
from ldm_jax.diffusion.schedule import make_flow_schedule, make_schedule

Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
T = jnp.asarray([20, 700, 999])
COND, NULL, FIRST = (Cond(context=jnp.full((3, 5, 6), value)) for value in (1.0, 0.0, 0.3))
SCHEDULES = {
    "eps": make_schedule(),
    "v": make_schedule(prediction="v"),
    "x0": make_schedule(prediction="x0"),
    "v from pure noise": make_schedule(prediction="v", zero_terminal_snr=True),
    "flow": make_flow_schedule(),
}


class Model:
    """A DiffusionModel whose network is a formula, and which only predicts."""

    conditioner = ConditionNetwork()

    def __init__(self, schedule):
        self.schedule = schedule

    def _missing(self, *args):
        raise NotImplementedError

    encode = decode = condition = _missing

    def predict(self, params, z_t, t, cond):
        context = cond.context.mean((1, 2))[:, None, None, None]
        return jnp.sin(z_t) + context * jnp.cos(2 * z_t) + 0.0005 * t[:, None, None, None]


def outputs(schedule, *conds):
    """What the network answers under each condition, and its input."""
    z_t = schedule.network_input(Z, T)
    return *(Model(schedule).predict({}, z_t, T, cond) for cond in conds), z_t


def rescaled(mixed, under_condition, phi):
    """Lin et al. 2023, equations 15 and 16, as diffusers' rescale_noise_cfg computes them."""
    mixed, under_condition = np.asarray(mixed, np.float64), np.asarray(under_condition, np.float64)
    stds = [x.std(axis=(1, 2, 3), keepdims=True) for x in (under_condition, mixed)]
    return phi * mixed * stds[0] / stds[1] + (1 - phi) * mixed


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaling_acts_on_what_the_network_predicts(name, phi):
    """The paper rescales eps, v or x0, whichever the network gives. At high noise eps has the spread of z_t under any
    condition, so rescaling that would do nothing."""
    schedule = SCHEDULES[name]
    denoise = generate.denoiser(Model(schedule), {}, COND, NULL, 5.0, rescale=phi)
    null, cond, z_t = outputs(schedule, NULL, COND)
    expected = schedule.to_eps(jnp.float32(rescaled(null + 5.0 * (cond - null), cond, phi)), z_t, T)
    np.testing.assert_allclose(denoise(Z, T), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rescaling_of_two_scales_in_an_interval_beside_a_weaker_model(name):
    """Rescaling belongs to the guidance by conditions: inside the interval, and before autoguidance moves it."""
    schedule, scales, phi = SCHEDULES[name], (2.0, 6.0), 0.7
    interval = schedule.sigma(T)[1] * jnp.asarray([0.9, 1.1])

    def weaker(z, t):
        return 0.8 * z

    denoise = generate.denoiser(
        Model(schedule), {}, COND, (NULL, FIRST), jnp.asarray(scales), rescale=phi, interval=interval, weaker=weaker,
        weaker_scale=3.0,
    )  # fmt: skip
    null, first, both, z_t = outputs(schedule, NULL, FIRST, COND)
    inside = null + scales[0] * (first - null) + scales[1] * (both - first)
    mixed = both.at[1].set(inside[1])
    eps = np.array(schedule.to_eps(jnp.float32(rescaled(mixed, both, phi)), z_t, T))
    eps[1] = 0.8 * Z[1] + 3.0 * (eps[1] - 0.8 * Z[1])
    np.testing.assert_allclose(denoise(Z, T), eps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance, null", [(5.0, NULL), (jnp.asarray([2.0, 6.0]), (NULL, FIRST))])
def test_rescaling_by_nothing_is_the_guidance(guidance, null):
    for schedule in SCHEDULES.values():
        plain = generate.denoiser(Model(schedule), {}, COND, null, guidance)
        off = generate.denoiser(Model(schedule), {}, COND, null, guidance, rescale=0.0)
        np.testing.assert_allclose(off(Z, T), plain(Z, T), rtol=1e-4, atol=1e-5)
