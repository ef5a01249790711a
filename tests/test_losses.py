"""First-stage arithmetic against the original's losses (goldens) and against plain derivations."""

import math
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import losses
from ldm_jax.models.discriminator import NLayerDiscriminator
from ldm_jax.models.layers import Conv, depth_to_space
from tests.golden_kinds import judge
from tests.golden_tools import load, rel
from tests.golden_training import KINK, LossRun, distance_to, move, record, settled

CASES = sorted(path.stem for path in (Path(__file__).parent / "golden/cases").glob("loss_*.json"))


@pytest.mark.parametrize("name", CASES)
def test_both_objectives_and_their_gradients_are_the_originals(name):
    results = judge(load(name))
    assert len(results) >= 15 and all(result.passed for result in results), results


@pytest.mark.slow
def test_a_gradient_at_a_kink_is_explained_and_a_wrong_one_is_not():
    """With the sign of one LeakyReLU input near 0 taken otherwise the gradient jumps by some per cent."""
    case = load("loss_vq_taming_const_hinge_step100_train")
    run = LossRun(case, perceptual=True)
    run.generator()
    inputs = []
    with nn.intercept_methods(record(inputs)):
        ours = run.discriminator()["grad_disc0"].value
    near = [(call, tuple(place)) for call, x in enumerate(inputs) for place in np.argwhere(abs(x) < KINK)]
    with nn.intercept_methods(move(near[:1], inputs)):
        jumped = run.discriminator()["grad_disc0"].value
    assert rel(jumped, ours) > 1e-3

    def against(grad):
        found = settled(replace(case, outputs={"grad_disc0": grad}), run.discriminator)["grad_disc0"]
        return found.reason, rel(found.value, grad)

    reason, difference = against(jumped)
    assert "taken the other way" in reason and difference < 1e-4
    assert against(ours) == ("", 0.0)
    reason, difference = against(1.001 * ours)
    assert reason == "" and difference > 1e-4


def test_discriminator_losses_are_the_originals():
    results = judge(load("d_losses"))
    assert len(results) == 3 and all(result.difference < 1e-6 for result in results)


def test_codebook_use_is_the_originals():
    case = load("perplexity")
    use = losses.codebook_use(jnp.asarray(case.inputs["indices"]).reshape(5, 10, 10), 64)
    np.testing.assert_allclose(use["perplexity"], case.outputs["perplexity"], rtol=1e-5)
    assert float(use["codebook_usage"]) * 64 == case.outputs["cluster_use"]


class Decoder(nn.Module):
    """A small decoder whose last convolution is called as in the autoencoder."""

    @nn.compact
    def __call__(self, z):
        h = nn.swish(nn.Conv(8, (3, 3), name="conv_in")(z))
        return nn.Conv(3, (3, 3), padding=1, name="conv_out")(h), h


def test_cheap_adaptive_weight_and_gradient_equal_those_of_the_whole_decoder():
    keys = jax.random.split(jax.random.key(0), 3)
    z, image = jax.random.normal(keys[0], (2, 32, 32, 4)), jax.random.uniform(keys[1], (2, 32, 32, 3))
    decoder, disc = Decoder(), NLayerDiscriminator(ndf=8)
    params = decoder.init(keys[2], z)["params"]
    v = disc.init(keys[2], image)

    def nll(params):
        reconstruction = decoder.apply({"params": params}, z)[0]
        error = losses.reconstruction_error(image, reconstruction, distance_to(image)(reconstruction))
        return losses.nll_kl(error)

    def g(params):
        return losses.generator_loss(disc.apply(v, decoder.apply({"params": params}, z)[0], False))

    grad_nll, grad_g = jax.grad(nll)(params), jax.grad(g)(params)
    norm = [float(jnp.linalg.norm(x["conv_out"]["kernel"])) for x in (grad_nll, grad_g)]
    weight = 0.5 * min(norm[0] / (norm[1] + 1e-4), 1e4)
    expected = jax.tree.map(lambda a, b: a + weight * b, grad_nll, grad_g)

    reconstruction, pull_back, features = jax.vjp(lambda p: decoder.apply({"params": p}, z), params, has_aux=True)
    _, grad, metrics, _ = losses.generator_objective(
        image, reconstruction, features, params["conv_out"]["kernel"], family="kl", penalty=0.0,
        distance=distance_to(image), logits=lambda x: (disc.apply(v, x, False), None), disc_factor=1.0,
        disc_weight=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(metrics["d_weight"], weight, rtol=1e-4)
    for ours, full in zip(jax.tree.leaves(pull_back(grad)[0]), jax.tree.leaves(expected)):
        np.testing.assert_allclose(ours, full, atol=1e-4 * float(jnp.abs(full).max()))


def test_adaptive_weight_of_zero_gradients_is_finite_and_clamped():
    features, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 3))
    zero, one = jnp.zeros((1, 8, 8, 3)), jnp.ones((1, 8, 8, 3))
    assert losses.adaptive_weight(features, kernel, zero, zero) == 0
    assert losses.adaptive_weight(features, kernel, one, zero) == 1e4
    assert losses.adaptive_weight(0 * features, kernel, one, one) == 0
    bf16 = losses.adaptive_weight(*(x.astype(jnp.bfloat16) for x in (features, kernel, one, one)))
    assert bf16.dtype == jnp.float32 and abs(float(bf16) - 1) < 1e-5


def test_adaptive_weight_of_a_decoder_of_pixel_patches():
    """Its last kernel makes 2x2x3 values a place; the gradients arrive at the pixels that these become."""
    keys = jax.random.split(jax.random.key(0), 4)
    features, kernel = jax.random.normal(keys[0], (2, 4, 4, 8)), jax.random.normal(keys[1], (3, 3, 8, 12))
    grads = [jax.random.normal(key, (2, 8, 8, 3)) for key in keys[2:]]

    def image(kernel):
        return depth_to_space(Conv(12).apply({"params": {"kernel": kernel, "bias": jnp.zeros(12)}}, features), 2)

    norms = [jnp.linalg.norm(jax.vjp(image, kernel)[1](grad)[0]) for grad in grads]
    weight = losses.adaptive_weight(features, kernel, *grads)
    np.testing.assert_allclose(weight, norms[0] / (norms[1] + 1e-4), rtol=1e-5)


def test_without_a_discriminator_the_loss_is_the_likelihood():
    image = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)
    features, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 3))
    loss, grad, metrics, variables = losses.generator_objective(
        image, image + 0.5, features, kernel, family="kl", penalty=2.0, distance=None, logits=None, disc_factor=1.0,
        disc_weight=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(loss, 0.5 * 8 * 8 * 3 + 2, rtol=1e-6)
    np.testing.assert_allclose(grad, np.full(image.shape, 0.5), rtol=1e-6)  # 1 / batch
    assert variables == {} and "g_loss" not in metrics


def test_discriminator_enters_at_its_step():
    assert [float(losses.adopt_weight(s, 50)) for s in (0, 49, 50, 51)] == [0, 0, 1, 1]
    logits = jnp.full((2, 4, 4, 1), 3.0)
    assert losses.discriminator_objective(logits, logits, losses.adopt_weight(49, 50))[0] == 0
    assert losses.discriminator_objective(logits, logits, losses.adopt_weight(50, 50))[0] == 2


def test_reconstruction_keeps_its_dtype_and_metrics_are_float32():
    image = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3), minval=-1)
    features, kernel = jnp.ones((2, 8, 8, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 3))
    loss, grad, metrics, _ = losses.generator_objective(
        image, image.astype(jnp.bfloat16), features, kernel, family="vq", penalty=0.0, distance=None,
        logits=lambda x: (x[..., :1].astype(jnp.float32), None), disc_factor=1.0, disc_weight=1.0,
    )  # fmt: skip
    assert grad.dtype == jnp.bfloat16 and bool(jnp.isfinite(grad).all())
    assert {x.dtype for x in (loss, *metrics.values())} == {jnp.dtype("float32")}


def test_unknown_names_list_the_known():
    x, kernel, logits = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 3)), jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match="'l3' is not one of l1, l2"):
        losses.reconstruction_error(x, x, pixel_loss="l3")
    with pytest.raises(ValueError, match="'wgan' is not one of hinge, vanilla"):
        losses.discriminator_objective(logits, logits, 1.0, "wgan")
    with pytest.raises(ValueError, match="'gan' is not one of kl, vq"):
        losses.generator_objective(
            x, x, x, kernel, family="gan", penalty=0.0, distance=None, logits=lambda x: (logits, None),
            disc_factor=1.0, disc_weight=1.0,
        )  # fmt: skip


def test_psnr_and_latent_statistics():
    image = jnp.zeros((2, 4, 4, 3))
    # An error of 0.2 in a range of 2: 20 log10(2 / 0.2) = 20 dB; without error the floor of 1e-10 counts.
    values = losses.psnr(image, image.at[0].add(0.2))
    np.testing.assert_allclose(values, [20.0, 10 * math.log10(4e10)], rtol=1e-5)
    statistics = losses.latent_statistics(jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1))
    assert (float(statistics["latent_mean"]), float(statistics["latent_std"])) == (2, 1)
