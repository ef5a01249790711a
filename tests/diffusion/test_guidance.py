import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import (
    autoguidance,
    classifier_free_guidance,
    classifier_guidance,
    composed_guidance,
    reconstruction_guidance,
    within,
)
from ldm_jax.diffusion.samplers import ddim
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.timetable import make_timetable

Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
T = jnp.asarray([1, 2, 3], jnp.int32)
COND = {"context": jnp.ones((3, 5, 6)), "concat": None}
NULL = {"context": jnp.zeros((3, 5, 6)), "concat": None}


def network(z, t, cond):
    context = cond["context"].mean((1, 2))[:, None, None, None]
    return jnp.sin(z) + context * jnp.cos(2 * z) + 0.1 * t[:, None, None, None]


def test_scale_0_is_unconditional_1_is_off_and_more_extrapolates():
    without, given = network(Z, T, NULL), network(Z, T, COND)
    for scale in (0.0, 1.0, 3.0):
        found = classifier_free_guidance(network, COND, NULL, scale)(Z, T)
        np.testing.assert_allclose(found, without + scale * (given - without), atol=1e-5)
    np.testing.assert_array_equal(classifier_free_guidance(network, COND)(Z, T), given)


def test_one_call_of_twice_the_batch_or_of_the_batch():
    sizes = []

    def denoise_with(z, t, cond):
        sizes.append((len(z), len(t), len(cond["context"])))
        return z

    classifier_free_guidance(denoise_with, COND, NULL, 2.0)(Z, T)
    classifier_free_guidance(denoise_with, COND, NULL)(Z, T)
    assert sizes == [(6, 6, 6), (3, 3, 3)]


def test_scale_may_differ_per_sample():
    scales = jnp.asarray([0.0, 1.0, 4.0])
    found = classifier_free_guidance(network, COND, NULL, scales)(Z, T)
    for i, scale in enumerate(scales):
        np.testing.assert_allclose(found[i], classifier_free_guidance(network, COND, NULL, scale)(Z, T)[i], rtol=1e-6)


def test_rescale_brings_back_the_spread_of_the_conditional():
    def std(x):
        return jnp.std(x, (1, 2, 3))

    plain = classifier_free_guidance(network, COND, NULL, 6.0)(Z, T)
    np.testing.assert_allclose(
        std(classifier_free_guidance(network, COND, NULL, 6.0, 1.0)(Z, T)), std(network(Z, T, COND)), rtol=1e-5
    )
    np.testing.assert_allclose(classifier_free_guidance(network, COND, NULL, 6.0, 0.0)(Z, T), plain, rtol=1e-6)


def test_two_conditions_with_a_scale_each():
    """Equation 3 of InstructPix2Pix, in one call; equal scales are one scale of both, one condition is the usual."""
    first, both = {"context": jnp.full((3, 5, 6), 0.3), "concat": None}, COND
    outputs, sizes = [network(Z, T, c) for c in (NULL, first, both)], []

    def counted(z, t, cond):
        sizes.append((len(z), len(t), len(cond["context"])))
        return network(z, t, cond)

    found = composed_guidance(counted, both, (NULL, first), (1.5, 7.0))(Z, T)
    expected = outputs[0] + 1.5 * (outputs[1] - outputs[0]) + 7.0 * (outputs[2] - outputs[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sizes == [(9, 9, 9)]
    for rescale in (None, 0.7):
        equal = composed_guidance(network, both, (NULL, first), (4.0, 4.0), rescale)(Z, T)
        usual = classifier_free_guidance(network, both, NULL, 4.0, rescale)(Z, T)
        np.testing.assert_allclose(equal, usual, rtol=1e-4, atol=1e-5)
        alone = composed_guidance(network, both, (NULL,), (4.0,), rescale)(Z, T)
        np.testing.assert_array_equal(alone, usual)
    with pytest.raises(ValueError, match="2 guidance scales need as many null conditions, not 1"):
        composed_guidance(network, both, (NULL,), (1.0, 2.0))


def test_guidance_within_an_interval_of_sigma_alone():
    """Inside the scale, outside what the condition says; the levels of sigma are those of the schedule."""
    t = jnp.asarray([50, 400, 900])
    sigma = np.sqrt(1 / SCHEDULE.alpha_bar - 1)[np.asarray(t)]
    full, off = (classifier_free_guidance(network, COND, NULL, s)(Z, t) for s in (4.0, 1.0))
    for low, high, inside in (
        (0, np.inf, [0, 1, 2]), (sigma[0] * 1.01, sigma[1] * 1.01, [1]), (0, sigma[0] * 0.99, []), (1.0, 1e3, [1, 2]),
    ):  # fmt: skip
        run = jax.jit(lambda ends: classifier_free_guidance(network, COND, NULL, within(4.0, ends, SCHEDULE))(Z, t))
        found = run(jnp.asarray([low, high]))
        for i in range(3):
            np.testing.assert_allclose(found[i], (full if i in inside else off)[i], rtol=1e-5, atol=1e-5)
    assert (np.diff(sigma) > 0).all() and sigma[0] < 1 < sigma[1]


def test_autoguidance_moves_away_from_the_weaker_model():
    """Each network sees the batch once. The weaker one of data that are spread wider by a factor."""
    seen = []

    def good(z, t):
        seen.append(("good", len(z)))
        return network(z, t, COND)

    def weak(z, t):
        seen.append(("weak", len(z)))
        return 0.8 * network(z, t, COND)

    t = jnp.asarray([50, 400, 900])
    found = autoguidance(good, weak, 3.0)(Z, t)
    assert sorted(seen) == [("good", 3), ("weak", 3)]
    np.testing.assert_allclose(found, (0.8 + 3 * 0.2) * network(Z, t, COND), rtol=1e-5)
    np.testing.assert_allclose(autoguidance(good, weak, 1.0)(Z, t), network(Z, t, COND), rtol=1e-5, atol=1e-6)
    off = autoguidance(good, weak, within(3.0, (0.0, 1e-6), SCHEDULE))(Z, t)
    np.testing.assert_allclose(off, network(Z, t, COND), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="null None; pass scale=None"):
        classifier_free_guidance(network, COND, None, 2.0)
    with pytest.raises(ValueError, match=r"\(3, 5, 6\).*\(1, 5, 6\)"):
        classifier_free_guidance(network, COND, {"context": jnp.zeros((1, 5, 6)), "concat": None}, 2.0)
    with pytest.raises(ValueError, match="give a scale or leave out rescale"):
        classifier_free_guidance(network, COND, rescale=0.7)


SCHEDULE = make_schedule()
PRIOR = 0.8  # standard deviation of the clean latents


def prior_eps(z, t):
    """The exact eps for clean latents ~ N(0, PRIOR^2)."""
    a = jnp.asarray(SCHEDULE.alpha_bar, jnp.float32)[t][:, None, None, None]
    return jnp.sqrt(1 - a) * z / (a * PRIOR**2 + 1 - a)


def test_an_exact_classifier_makes_the_eps_of_the_class():
    """Two classes of clean latents, N(mean_y, PRIOR^2): the mixture's eps, guided by the exact p(y | z_t, t) with
    scale 1, is the eps of that class alone; so samples of a class land on it. Another scale moves in proportion."""
    means = jnp.asarray([-1.5, 0.5])

    def parts(z, t):
        a = jnp.asarray(SCHEDULE.alpha_bar, jnp.float32)[t][:, None, None, None]
        return a, a * PRIOR**2 + 1 - a

    def eps_of(y):
        def eps(z, t):
            a, variance = parts(z, t)
            return jnp.sqrt(1 - a) * (z - jnp.sqrt(a) * means[y]) / variance

        return eps

    def log_joint(z, t):  # [2,B], up to a constant; classes alike
        a, variance = parts(z, t)
        squares = [jnp.square(z - jnp.sqrt(a) * m) / variance for m in means]
        return -0.5 * jnp.stack([s.sum((1, 2, 3)) for s in squares])

    def mixture_eps(z, t):
        share = jax.nn.softmax(log_joint(z, t), axis=0)[..., None, None, None]
        return share[0] * eps_of(0)(z, t) + share[1] * eps_of(1)(z, t)

    @jax.jit
    def guided_to(y, scale, t):
        denoise = classifier_guidance(
            mixture_eps, lambda z, t: scale * jax.nn.log_softmax(log_joint(z, t), 0)[y], SCHEDULE
        )
        return denoise(Z, t), ddim(denoise, Z, make_timetable(SCHEDULE, 50), None), mixture_eps(Z, t)

    t = jnp.asarray([3, 600, 950])
    for y in (0, 1):
        eps, samples, mixed = guided_to(y, 1.0, t)
        np.testing.assert_allclose(eps, eps_of(y)(Z, t), atol=1e-5)
        assert abs(float(samples.mean()) - float(means[y])) < 0.2
    assert jnp.abs(eps - mixed).max() > 0.1
    np.testing.assert_allclose(guided_to(1, 3.0, t)[0] - mixed, 3 * (eps - mixed), atol=1e-5)


def gaussian_log_p(y, slope):
    """log N(y; slope z, 1) up to a constant, per sample: a linear decoder `slope`."""
    return lambda z: -0.5 * jnp.sum(jnp.square(y - slope * z), axis=(1, 2, 3))


def test_steered_eps_is_the_formula():
    """With linear maps the gradient is known: slope dz/dz_t (y - slope z), z = dz/dz_t z_t."""
    t = jnp.asarray([50, 400, 900])
    a = SCHEDULE.alpha_bar[np.asarray(t)].reshape(3, 1, 1, 1)
    inner = np.sqrt(a) * PRIOR**2 / (a * PRIOR**2 + 1 - a)
    y, slope = 2.0, 0.5
    found = reconstruction_guidance(prior_eps, gaussian_log_p(y, slope), SCHEDULE)(Z, t)
    gradient = slope * inner * (y - slope * inner * Z)
    np.testing.assert_allclose(found, prior_eps(Z, t) - np.sqrt(1 - a) * gradient, atol=1e-5)
    np.testing.assert_array_equal(
        reconstruction_guidance(prior_eps, lambda z: jnp.zeros(len(z)), SCHEDULE)(Z, t), prior_eps(Z, t)
    )


def test_the_limit_shortens_only_what_is_longer():
    t = jnp.asarray([50, 400, 900])

    def moves(limit):
        return reconstruction_guidance(prior_eps, gaussian_log_p(9.0, 1.0), SCHEDULE, limit)(Z, t) - prior_eps(Z, t)

    def norm(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3)))

    free, limited = moves(None), moves(0.5)
    allowed = 0.5 * norm(prior_eps(Z, t))
    assert jnp.any(norm(free) > allowed) and jnp.any(norm(free) < allowed)
    np.testing.assert_allclose(norm(limited), jnp.minimum(norm(free), allowed), rtol=1e-5)
    shares = (norm(limited) / norm(free))[:, None, None, None]
    np.testing.assert_allclose(limited, shares * free, atol=1e-5)


def test_steered_samples_come_from_the_posterior():
    """z ~ N(0, PRIOR^2), y = slope z + unit noise: the posterior mean is slope PRIOR^2 y / (1 + slope^2 PRIOR^2).

    The guide sees the expected z in place of z, which matters little for a small slope; a large y makes its pull
    visible. Towards y, with the right size; -y pulls the other way.
    """
    slope, timetable = 0.1, make_timetable(SCHEDULE, 200)
    pull = slope * PRIOR**2 / (1 + slope**2 * PRIOR**2)

    @jax.jit
    def sample(y):
        return ddim(reconstruction_guidance(prior_eps, gaussian_log_p(y, slope), SCHEDULE), Z, timetable, None)

    free = sample(0.0)
    for y in (20.0, -20.0):
        np.testing.assert_allclose(sample(y) - free, pull * y, rtol=0.02)
