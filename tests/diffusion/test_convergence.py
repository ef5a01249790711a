"""Samplers on a mixture of Gaussians whose noise is known exactly: orders of convergence, means and variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.samplers import SAMPLERS, start_noise
from ldm_jax.diffusion.schedule import make_flow_schedule, make_schedule
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
        ("unipc_3", 4, 320),
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
    [("euler_ancestral", 1.0, 100), ("dpm_solver_pp_2m_sde", 1.0, 50), ("dpm_solver_pp_2m_sde", 0.5, 50)],
)
def test_random_samplers_give_the_mean_and_variance_of_the_data(name, eta, steps):
    schedule = make_schedule()
    keys = jax.random.split(jax.random.key(0), 10_000)
    table = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def denoise(z, t):
        return mixture.eps_at(z, table[t[0]])

    @jax.jit
    def run():
        timetable = make_timetable(schedule, steps, SAMPLERS[name].spacing)
        return SAMPLERS[name](denoise, start_noise(keys, (1,)), timetable, keys, eta=eta)

    z = np.asarray(run(), np.float64)
    check(z, 0.03)


def check(z, slack):
    """Means, spreads and shares of the two parts. Of 10,000 numbers they have standard errors of 0.5 to 1.5 %."""
    lower = z < -0.1
    assert abs(z.mean() - mixture.MEAN) < slack and abs(z.var() / mixture.VARIANCE - 1) < 2 * slack
    assert abs(lower.mean() - mixture.WEIGHTS[0]) < slack
    for part, mean, std in zip((z[lower], z[~lower]), mixture.MEANS, mixture.STDS):
        assert abs(part.mean() - mean) < slack and abs(part.std() / std - 1) < 3 * slack, (part.mean(), part.std())


def exact_network(schedule):
    """(z_t, t) -> what a perfect network answers, which sees the path of the schedule and predicts v."""

    def network(z_t, t):
        signal, noise = schedule.signal(t)[:, None], schedule.noise(t)[:, None]
        length = jnp.hypot(signal, noise)
        eps = mixture.eps_at(z_t / length, schedule.level(t)[0])
        x0 = (z_t - noise * eps) / signal
        return schedule.velocity(x0, eps, t)

    return network


def exact_denoiser(schedule):
    """The same as a Denoise, through the schedule as `generate.denoiser` does."""
    network = exact_network(schedule)

    def denoise(z, t):
        z_t = schedule.network_input(z, t)
        return schedule.to_eps(network(z_t, t), z_t, t)

    return denoise


FLOW, ZERO = make_flow_schedule(960), make_schedule(prediction="v", zero_terminal_snr=True)
LIKE_OTHERS = ("ddim", "euler_ancestral", "unipc_2")  # their steps are those of euler, ddpm and unipc_3
FROM_NOISE = [(n, FLOW, "trailing") for n, s in SAMPLERS.items() if s.from_pure_noise and n not in LIKE_OTHERS]
FROM_NOISE += [(name, ZERO, "quadratic") for name in ("euler", "heun", "dpm_solver_pp_2m_sde", "unipc_3")]


@pytest.mark.parametrize("name, schedule, spacing", FROM_NOISE, ids=[f"{name}-{s}" for name, _, s in FROM_NOISE])
def test_from_pure_noise_to_the_data(name, schedule, spacing):
    """Samplers that can begin at signal 0 end in the data."""
    keys = jax.random.split(jax.random.key(0), 10_000)
    steps = 160 if name in ("ddim", "ddpm", "euler", "euler_ancestral") else 48
    timetable = make_timetable(schedule, steps, spacing)
    z = jax.jit(lambda: SAMPLERS[name](exact_denoiser(schedule), start_noise(keys, (1,)), timetable, keys))()
    check(np.asarray(z, np.float64), 0.04)


def test_a_step_of_euler_is_the_straight_step_of_a_flow():
    schedule, steps = FLOW, 12
    z = jnp.linspace(-1.9, 1.9, 16)[:, None]
    network, plain = exact_network(schedule), z
    for t in range(959, 0, -80):
        plain = plain - 80 / 960 * network(plain, jnp.full(16, t))
    found = SAMPLERS["euler"](exact_denoiser(schedule), z, make_timetable(schedule, steps, "trailing"))
    np.testing.assert_allclose(found, plain, atol=1e-3)  # 1/32768 is not 0


def test_halving_the_steps_of_a_flow_shows_the_order():
    z = np.linspace(-1.9, 1.9, 16)[:, None]
    first = 0.5 * np.log(FLOW.alpha_bar[-1] / (1 - FLOW.alpha_bar[-1]))
    end = mixture.flow(z, first, 9.0, 3000)
    for name, order in (("euler", 1), ("heun", 2)):
        run, errors = jax.jit(lambda z, t, name=name: SAMPLERS[name](exact_denoiser(FLOW), z, t)), []
        for steps in (40, 80):
            found = run(jnp.asarray(z), make_timetable(FLOW, steps, "trailing"))
            errors.append(np.abs(np.asarray(found, np.float64) - end).max())
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2, errors
