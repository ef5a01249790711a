"""The codebook with its gradients and the Gaussian posterior against the original's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import quantizer
from ldm_jax.models.quantizer import DiagonalGaussian, VectorQuantizer
from tests.golden import weights
from tests.golden_tools import load, nchw, nhwc, rel


@pytest.mark.parametrize("legacy", [True, False])
def test_quantizer_equals_the_original(legacy):
    case = load(f"quantizer_legacy{int(legacy)}")
    z, g = (jnp.asarray(nhwc(case.inputs[k])) for k in ("z", "g"))
    codebook = jnp.asarray(weights.make_weight("mod_vq/quantize.embedding.weight", (64, 4)))
    module = VectorQuantizer(64, 4, legacy_beta=legacy)

    def quantize(table, z):
        return module.apply({"params": {"embedding": {"embedding": table}}}, z)

    z_q, loss, indices = quantize(codebook, z)
    assert rel(nchw(z_q), case.outputs["z_q"]) < 1e-5
    assert rel(loss, case.outputs["loss"]) < 1e-5
    assert np.array_equal(np.ravel(indices), case.outputs["indices"])
    grad_codebook, grad_z = jax.grad(lambda e, z: quantize(e, z)[1], (0, 1))(codebook, z)
    assert rel(grad_codebook, case.outputs["grad_loss_codebook"]) < 1e-5
    assert rel(nchw(grad_z), case.outputs["grad_loss_z"]) < 1e-5
    through = jax.grad(lambda e, z: (quantize(e, z)[0] * g).sum(), (0, 1))(codebook, z)
    assert not np.any(through[0])
    assert rel(nchw(through[1]), case.outputs["grad_st_z"]) < 1e-5


@pytest.mark.parametrize("codes", [5, 256, 300])
def test_nearest_code_in_blocks(codes, monkeypatch):
    monkeypatch.setattr(quantizer, "BLOCK", 128)
    rng = np.random.default_rng(codes)
    z, table = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(codes, 3)).astype(np.float32)
    table[-1] = table[1]  # a tie: the first of the two counts
    expected = ((z[:, None] - table) ** 2).sum(-1).argmin(-1)
    assert np.array_equal(quantizer.nearest_code(jnp.asarray(z), jnp.asarray(table)), expected)


def test_codebook_starts_uniform():
    params = VectorQuantizer(64, 4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))["params"]
    table = params["embedding"]["embedding"]
    assert 0.9 / 64 < np.abs(table).max() <= 1 / 64


def test_gaussian_equals_the_original():
    case = load("diag_gaussian")
    moments = np.array(case.inputs["params"])
    posterior = DiagonalGaussian(jnp.asarray(nhwc(moments)))
    for name in ("mean", "logvar", "std"):
        ours = nchw(getattr(posterior, name))
        # The recorded ones have two log-variances set beyond the clamp.
        assert rel(ours.ravel()[2 * 16 :], case.outputs[name].ravel()[2 * 16 :]) < 1e-5, name
    moments[0, 4, 0, 0], moments[0, 5, 0, 0] = 100, -100
    posterior = DiagonalGaussian(jnp.asarray(nhwc(moments)))
    assert np.allclose(posterior.kl(), case.outputs["kl_clamped"], rtol=1e-5)
    assert posterior.logvar.max() == 20 and posterior.logvar.min() == -30


def test_samples_depend_on_their_own_key():
    posterior = DiagonalGaussian(jnp.ones((3, 2, 2, 8)))
    keys = jax.random.split(jax.random.key(1), 3)
    alone = DiagonalGaussian(jnp.ones((1, 2, 2, 8))).sample(keys[1:2])
    assert np.array_equal(posterior.sample(keys)[1:2], alone)
    one_key = posterior.sample(jax.random.key(1))
    assert one_key.shape == (3, 2, 2, 4) and not np.array_equal(one_key[0], one_key[1])
