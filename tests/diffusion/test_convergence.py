"""Samplers on a mixture of Gaussians whose noise is known exactly: orders of convergence, means and variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.samplers import SAMPLERS, start_noise
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.timetable import make_timetable
from tests.diffusion import mixture

RANGE = (-3.0, 2.0)  # of lambda = log(signal / noise)


@pytest.fixture(scope="module")
def exact():
    z = np.linspace(-1.9, 1.9, 16)[:, None]
    return z, mixture.flow(z, *RANGE)


def error(name, steps, exact):
    """The largest error of a sampler in float64."""
    z, end = exact
    with jax.enable_x64(True):
        alpha_bar = mixture.levels(*RANGE, steps)
        timetable = mixture.timetable_of(alpha_bar)
        run = jax.jit(lambda z: SAMPLERS[name](mixture.denoiser(alpha_bar), z, timetable, None))
        return np.abs(np.asarray(run(jnp.asarray(z))) - end).max()


@pytest.mark.parametrize(
    "name, order, steps",
    [
        ("ddim", 1, 160), ("euler", 1, 160), ("heun", 2, 80), ("dpm_solver_pp_2m", 2, 80), ("unipc_2", 3, 80),
        ("unipc_3", 4, 80),
    ],
)  # fmt: skip
def test_halving_the_steps_shows_the_order_of_the_paper(name, order, steps, exact):
    coarse, fine = error(name, steps, exact), error(name, 2 * steps, exact)
    assert abs(np.log2(coarse / fine) - order) < 0.2, (coarse, fine)


def test_without_noise_the_random_samplers_are_the_deterministic_ones():
    alpha_bar = np.append(mixture.levels(*RANGE, 8), 1.0)
    denoise, timetable = mixture.denoiser(alpha_bar), mixture.timetable_of(alpha_bar)
    z = jnp.linspace(-1.9, 1.9, 16)[:, None]
    for random, other in (("euler_ancestral", "euler"), ("dpm_solver_pp_2m_sde", "dpm_solver_pp_2m")):
        found = SAMPLERS[random](denoise, z, timetable, None, eta=0.0)
        np.testing.assert_allclose(found, SAMPLERS[other](denoise, z, timetable, None), atol=1e-6)


@pytest.mark.parametrize(
    "name, eta, steps",
    [("euler_ancestral", 1.0, 200), ("dpm_solver_pp_2m_sde", 1.0, 50), ("dpm_solver_pp_2m_sde", 0.5, 50)],
)
def test_random_samplers_give_the_mean_and_variance_of_the_data(name, eta, steps):
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 40_000)
    table = jnp.asarray(schedule.alpha_bar, jnp.float32)

    @jax.jit
    def run():
        timetable = make_timetable(schedule, steps, SAMPLERS[name].spacing)
        denoise = lambda z, t: mixture.eps_at(z, table[t[0]])  # noqa: E731
        return SAMPLERS[name](denoise, start_noise(keys, (1,)), timetable, keys, eta=eta)

    z = np.asarray(run(), np.float64)
    # 40,000 numbers: standard error 0.004 of the mean and 0.5% of the variance
    assert abs(z.mean() - mixture.MEAN) < 0.02
    assert abs(z.var() / mixture.VARIANCE - 1) < 0.03
    lower = z < -0.2  # the shares and spreads of the two parts, too
    assert abs(lower.mean() - mixture.WEIGHTS[0]) < 0.015
    for part, mean, std in zip((z[lower], z[~lower]), mixture.MEANS, mixture.STDS):
        assert abs(part.mean() - mean) < 0.03 and abs(part.std() / std - 1) < 0.06
