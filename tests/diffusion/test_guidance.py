import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import guided

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
        found = guided(network, COND, NULL, scale)(Z, T)
        np.testing.assert_allclose(found, without + scale * (given - without), atol=1e-5)
    np.testing.assert_array_equal(guided(network, COND)(Z, T), given)


def test_one_call_of_twice_the_batch_or_of_the_batch():
    sizes = []

    def denoise_with(z, t, cond):
        sizes.append((len(z), len(t), len(cond["context"])))
        return z

    guided(denoise_with, COND, NULL, 2.0)(Z, T)
    guided(denoise_with, COND, NULL)(Z, T)
    assert sizes == [(6, 6, 6), (3, 3, 3)]


def test_scale_may_differ_per_sample():
    scales = jnp.asarray([0.0, 1.0, 4.0])
    found = guided(network, COND, NULL, scales)(Z, T)
    for i, scale in enumerate(scales):
        np.testing.assert_allclose(found[i], guided(network, COND, NULL, scale)(Z, T)[i], rtol=1e-6)


def test_rescale_brings_back_the_spread_of_the_conditional():
    def std(x):
        return jnp.std(x, (1, 2, 3))

    plain = guided(network, COND, NULL, 6.0)(Z, T)
    np.testing.assert_allclose(
        std(guided(network, COND, NULL, 6.0, 1.0)(Z, T)), std(network(Z, T, COND)), rtol=1e-5
    )
    np.testing.assert_allclose(guided(network, COND, NULL, 6.0, 0.0)(Z, T), plain, rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="null None; pass scale=None"):
        guided(network, COND, None, 2.0)
    with pytest.raises(ValueError, match=r"\(3, 5, 6\).*\(1, 5, 6\)"):
        guided(network, COND, {"context": jnp.zeros((1, 5, 6)), "concat": None}, 2.0)
    with pytest.raises(ValueError, match="give a scale or leave out rescale"):
        guided(network, COND, rescale=0.7)
