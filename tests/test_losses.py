"""First-stage arithmetic against the original's losses (goldens) and against plain derivations."""

import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import losses
from ldm_jax.models.discriminator import NLayerDiscriminator
from tests.discriminator_tools import variables
from tests.golden.weights import make_weight
from tests.golden_tools import load, nhwc, rel

CASES = sorted(path.stem for path in (Path(__file__).parent / "golden/cases").glob("loss_*.json"))
DISC = NLayerDiscriminator()


def distance_to(image):
    """The perceptual distance that the goldens were made with: mean squared difference per sample."""
    return lambda reconstruction: ((image - reconstruction) ** 2).mean((1, 2, 3))


def last_layer():
    """Kernel [3,3,16,3] and bias [3] of the goldens' last convolution."""
    return (
        jnp.asarray(make_weight("mod_last/conv.weight", (3, 16, 3, 3)).transpose(2, 3, 1, 0)),
        jnp.asarray(make_weight("mod_last/conv.bias", (3,))),
    )


def convolve(kernel, features):
    out = jax.lax.conv_general_dilated(
        features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + last_layer()[1]


def discriminate(v, image, train):
    """Logits and the variables after: with `train` the running statistics move."""
    if not train:
        return DISC.apply(v, image, False), v
    logits, new = DISC.apply(v, image, True, mutable=["batch_stats"])
    return logits, {**v, **new}


def kl_of(moments):
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
    logvar = logvar.clip(-30, 20)
    return 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum((1, 2, 3))


class Run:
    """Both objectives of one golden, in the order of the original: generator, then discriminator."""

    def __init__(self, name):
        self.case = case = load(name)
        ctor, inputs = case.meta["ctor"], case.inputs
        train, kl = ctor["training"], ctor["fam"] == "kl"
        self.factor = losses.adopt_weight(ctor["step"], ctor["disc_start"])
        # The goldens' logvar: unlike the default of 0 it tests where logvar enters.
        self.logvar = ctor.get("logvar_init", 0.3) if kl else 0.0
        self.image, self.features = jnp.asarray(nhwc(inputs["x"])), jnp.asarray(nhwc(inputs["feat"]))
        self.distance = distance_to(self.image) if "_const_" in name else None
        self.weights = inputs["weights"].ravel() if "weights" in inputs else None
        penalty = 1e-6 * kl_of(inputs["moments"]).mean() if kl else inputs["codebook_loss"]
        self.v = variables(case.meta["weight_manifest"], "mod_lossdisc/")
        kernel = last_layer()[0]
        reconstruction, pull_back = jax.vjp(lambda k: convolve(k, self.features), kernel)
        self.loss, grad, self.metrics, v = losses.generator_objective(
            self.image, reconstruction, self.features, kernel, family="kl" if kl else "vq",
            penalty=jnp.float32(penalty), distance=self.distance,
            logits=lambda x: discriminate(self.v, x, train), disc_factor=self.factor,
            disc_weight=0.5 if kl else 0.75, logvar=self.logvar,
            pixel_loss="l2" if ctor["fam"] == "vq_ldm" else "l1",
        )  # fmt: skip
        self.grad_last = pull_back(grad)[0].transpose(3, 2, 0, 1)
        self.reconstruction = reconstruction

        def d_loss(params):
            real, after = discriminate({**v, "params": params}, self.image, train)
            fake, _ = discriminate(after, reconstruction, train)
            return losses.discriminator_objective(real, fake, self.factor, ctor["disc_loss"])

        (self.d_loss, d_metrics), grads = jax.value_and_grad(d_loss, has_aux=True)(v["params"])
        self.metrics |= d_metrics
        self.grad_disc0 = grads["main_0"]["kernel"].transpose(3, 2, 0, 1)

    def nll(self, logvar, weights=None):
        perceptual = None if self.distance is None else self.distance(self.reconstruction)
        error = losses.reconstruction_error(self.image, self.reconstruction, perceptual)
        return losses.nll_kl(error, logvar, weights) if weights is not None else losses.nll_kl(error, logvar)


OURS = {"nll_loss": "nll", "g_loss": "g_loss", "d_weight": "d_weight", "disc_loss": "disc_loss",
        "logits_real": "logits_real", "logits_fake": "logits_fake"}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CASES if "unclamped" not in n])
def test_both_objectives_and_their_gradients_are_the_originals(name):
    run = Run(name)
    golden = run.case.outputs
    np.testing.assert_allclose(run.loss, golden["gen_loss"], rtol=1e-4)
    np.testing.assert_allclose(run.d_loss, golden["disc_loss"], rtol=1e-4)
    for theirs, ours in OURS.items():
        # logits are means of numbers of both signs: 1e-5 of their spread
        np.testing.assert_allclose(
            run.metrics[ours], golden[f"log_train.{theirs}"], rtol=1e-4, atol=1e-5, err_msg=theirs
        )
    assert rel(run.grad_last, golden["grad_last"]) < 1e-4
    if run.factor:
        assert rel(run.grad_disc0, golden["grad_disc0"]) < 1e-4
    else:
        assert not run.grad_disc0.any()
    if "grad_logvar" in golden:
        np.testing.assert_allclose(jax.grad(run.nll)(run.logvar), golden["grad_logvar"], rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in CASES if "unclamped" in n])
def test_adaptive_weight_below_its_clamp_and_weights_per_sample(name):
    run = Run(name)
    golden = run.case.outputs
    np.testing.assert_allclose(run.metrics["d_weight"], golden["log_train.d_weight"], rtol=1e-3)
    np.testing.assert_allclose(run.metrics["nll"], golden["log_train.nll_loss"], rtol=1e-5)
    weighted = run.nll(run.logvar, run.weights)
    loss = weighted + run.loss - run.metrics["nll"]
    np.testing.assert_allclose(loss, golden["gen_loss"], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(run.nll)(run.logvar, run.weights), golden["grad_logvar"], rtol=1e-4)


def test_discriminator_losses_are_the_originals():
    case = load("d_losses")
    real, fake = (jnp.asarray(nhwc(case.inputs[f"logits_{k}"])) for k in ("real", "fake"))
    np.testing.assert_allclose(losses.hinge_d_loss(real, fake), case.outputs["hinge"], rtol=1e-6)
    np.testing.assert_allclose(losses.vanilla_d_loss(real, fake), case.outputs["vanilla"], rtol=1e-6)


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

    reconstruction, pull_back, features = jax.vjp(
        lambda p: decoder.apply({"params": p}, z), params, has_aux=True
    )
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
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match="'l3' is not one of l1, l2"):
        losses.reconstruction_error(x, x, pixel_loss="l3")
    with pytest.raises(ValueError, match="'wgan' is not one of hinge, vanilla"):
        losses.discriminator_objective(x, x, 1.0, "wgan")
    with pytest.raises(ValueError, match="'gan' is not one of kl, vq"):
        losses.generator_objective(
            x, x, x, x, family="gan", penalty=0.0, distance=None, logits=lambda x: (x, None),
            disc_factor=1.0, disc_weight=1.0,
        )  # fmt: skip


def test_psnr_and_latent_statistics():
    image = jnp.zeros((2, 4, 4, 3))
    # An error of 0.2 in a range of 2: 20 log10(2 / 0.2) = 20 dB; without error the floor of 1e-10 counts.
    values = losses.psnr(image, image.at[0].add(0.2))
    np.testing.assert_allclose(values, [20.0, 10 * math.log10(4e10)], rtol=1e-5)
    statistics = losses.latent_statistics(jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1))
    assert (float(statistics["latent_mean"]), float(statistics["latent_std"])) == (2, 1)
