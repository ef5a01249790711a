"""The discriminator against the original's outputs (two correct float32 runs differ by about 1e-5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.discriminator import NLayerDiscriminator
from tests.discriminator_tools import variables
from tests.golden_tools import load, nhwc, rel


@pytest.mark.parametrize("n_layers", [2, 3])
def test_outputs_and_running_statistics_are_the_originals(n_layers):
    case = load(f"nlayer_discriminator_{n_layers}")
    v = variables(case.meta["weight_manifest"], f"mod_disc{n_layers}/")
    model = NLayerDiscriminator(n_layers=n_layers)
    x = jnp.asarray(nhwc(case.inputs["x"]))
    assert rel(model.apply(v, x, False), nhwc(case.outputs["logits_eval"])) < 1e-4
    odd = model.apply(v, jnp.asarray(nhwc(case.inputs["x_odd"])), False)
    assert rel(odd, nhwc(case.outputs["logits_eval_odd"])) < 1e-4
    logits, new = model.apply(v, x, True, mutable=["batch_stats"])
    assert rel(logits, nhwc(case.outputs["logits_train"])) < 1e-4
    after = new["batch_stats"]["main_3"]
    np.testing.assert_allclose(after["mean"], case.outputs["running_mean_after"], atol=1e-6)
    np.testing.assert_allclose(after["var"], case.outputs["running_var_after"], rtol=1e-6)


def test_actnorm_starts_from_the_data_as_the_original():
    case = load("nlayer_discriminator_actnorm")
    v = variables(case.meta["weight_manifest"], "mod_disc_actnorm/")
    model = NLayerDiscriminator(use_actnorm=True)
    # Parameters that are missing are initialised: only those of ActNorm are.
    logits, new = model.apply(
        {"params": v["params"]}, jnp.asarray(nhwc(case.inputs["x"])), True,
        mutable=["params"], rngs={"params": jax.random.key(0)},
    )  # fmt: skip
    assert rel(logits, nhwc(case.outputs["logits_train_first"])) < 1e-4
    norm = new["params"]["main_3"]
    np.testing.assert_allclose(norm["loc"], case.outputs["loc_after"].ravel(), atol=1e-5)
    np.testing.assert_allclose(norm["scale"], case.outputs["scale_after"].ravel(), rtol=1e-5)
    again = model.apply(new, nhwc(case.inputs["x"]), False)
    assert rel(again, nhwc(case.outputs["logits_eval_after"])) < 1e-4


def test_shapes_parameters_and_initialisation():
    model = NLayerDiscriminator()
    image = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 2_765_633
    assert jax.eval_shape(model.apply, shapes, image).shape == (2, 30, 30, 1)
    v = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), True)
    assert abs(float(v["params"]["main_8"]["kernel"].std()) - 0.02) < 1e-3
    assert abs(float(v["params"]["main_9"]["scale"].mean()) - 1.0) < 5e-3
    # init must not move the running statistics.
    assert all(float(x["mean"].sum()) == 0 for x in v["batch_stats"].values())


def test_bfloat16_keeps_statistics_and_logits_in_float32():
    model = NLayerDiscriminator(ndf=8, dtype=jnp.bfloat16)
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    v = model.init(jax.random.key(1), image)
    logits, new = model.apply(v, image, True, mutable=["batch_stats"])
    assert {x.dtype for x in (logits, *jax.tree.leaves(new))} == {jnp.dtype("float32")}
    exact = NLayerDiscriminator(ndf=8).apply(v, image, True, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(logits, exact, atol=0.05 * float(exact.std()) + 0.01)


@pytest.mark.parametrize("n_layers, size", [(1, 6), (2, 12), (3, 24)])
def test_smallest_image(n_layers, size):
    model = NLayerDiscriminator(ndf=8, n_layers=n_layers)
    assert model.init_with_output(jax.random.key(0), jnp.zeros((1, size, size, 3)))[0].shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"at least .*disc_layers"):
        model.init(jax.random.key(0), jnp.zeros((1, size - 1, size, 3)))
