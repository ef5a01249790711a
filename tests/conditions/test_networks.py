"""Conditioners: shapes, nulls, the original's outputs, and that dropping acts per sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.conditions.base import drop, drop_parts
from ldm_jax.conditions.class_label import ClassEmbedder
from ldm_jax.conditions.hybrid import HybridNetwork
from ldm_jax.conditions.inpaint import Inpainting
from ldm_jax.conditions.none import Unconditional
from ldm_jax.conditions.semantic import SpatialRescaler
from ldm_jax.conditions.superres import LowRes
from ldm_jax.conditions.text import TextConditioner
from ldm_jax.conditions.vectors import Vectors
from tests.golden_tools import load, nchw, nhwc, rel, to_flax

RNG = np.random.default_rng(0)


def encode(image):
    """A stand-in for the first stage, f = 4."""
    return image[:, ::4, ::4]


def image(*shape):
    return RNG.uniform(-1, 1, shape).astype(np.float32)


CASES = {
    "class": (ClassEmbedder(5, 8, null_class=True), {"label": np.array([0, 3])}, (2, 1, 8), None),
    "text": (
        TextConditioner(11, 4, 16, 1, null_tokens=(1, 2, 0, 0)),
        {"tokens": np.array([[1, 5, 2, 0], [1, 6, 7, 2]])},
        (2, 4, 16),
        None,
    ),
    "semantic": (SpatialRescaler(6, 3), {"segmentation": RNG.integers(0, 6, (2, 16, 16))}, None, (2, 4, 4, 3)),
    "low_res": (LowRes(), {"low_res": image(2, 4, 4, 3)}, None, (2, 4, 4, 3)),
    "inpainting": (
        Inpainting(),
        {"masked_image": image(2, 16, 16, 3), "mask": RNG.integers(0, 2, (2, 16, 16, 1)).astype(np.float32)},
        None,
        (2, 4, 4, 4),
    ),
    "vectors": (Vectors(), {"vectors": image(2, 3, 7)}, (2, 3, 7), None),
    "hybrid": (
        HybridNetwork(
            {
                "class": ClassEmbedder(5, 7, null_class=True),
                "vectors": Vectors(),
                "superres": LowRes(),
                "semantic": SpatialRescaler(6, 3),
            }
        ),
        {
            "label": np.array([0, 3]),
            "vectors": image(2, 3, 7),
            "low_res": image(2, 4, 4, 3),
            "segmentation": RNG.integers(0, 6, (2, 16, 16)),
        },
        (2, 4, 7),
        (2, 4, 4, 6),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_dropping_per_sample(name):
    model, batch, context, concat = CASES[name]
    batch = jax.tree.map(jnp.asarray, batch)
    variables = model.init(jax.random.key(0), batch, encode)
    said = model.apply(variables, batch, encode)
    assert (None if said.context is None else said.context.shape) == context
    assert (None if said.concat is None else said.concat.shape) == concat

    half = model.apply(variables, drop(model, batch, jnp.array([True, False])), encode)
    nothing = model.apply(variables, drop(model, batch, jnp.array([True, True])), encode)
    for a, b, n in zip(jax.tree.leaves(said), jax.tree.leaves(half), jax.tree.leaves(nothing)):
        np.testing.assert_allclose(b[1], a[1], rtol=1e-6)
        np.testing.assert_allclose(b[0], n[0], rtol=1e-6)
        np.testing.assert_allclose(n[0], n[1], rtol=1e-6)  # the null does not depend on the sample
        assert np.abs(b[0] - a[0]).max() > 1e-3


def test_text_mask_hides_padding():
    model = TextConditioner(11, 4, 16, 1, use_mask=True)
    batch = {"tokens": jnp.array([[1, 5, 2, 0]]), "token_mask": jnp.array([[1, 1, 1, 0]])}
    variables = model.init(jax.random.key(0), batch, encode)
    context = model.apply(variables, batch, encode).context
    other = model.apply(variables, batch | {"tokens": jnp.array([[1, 5, 2, 9]])}, encode).context
    np.testing.assert_allclose(context, other, atol=1e-6)
    assert not context[0, 3].any() and context[0, 2].any()


def test_inpainting_channels():
    model, batch, *_ = CASES["inpainting"]
    concat = model.apply({}, batch, encode).concat
    np.testing.assert_array_equal(concat[..., :3], encode(batch["masked_image"]))
    np.testing.assert_array_equal(concat[..., 3:], 2 * batch["mask"][:, ::4, ::4] - 1)


def test_segmentation_without_class_is_zero():
    model, batch, *_ = CASES["semantic"]
    variables = model.init(jax.random.key(0), batch, encode)
    assert not model.apply(variables, model.null(batch), encode).concat.any()


def test_no_null():
    for model in (Unconditional(), ClassEmbedder(5, 8)):
        with pytest.raises(ValueError, match="no"):
            model.null({"label": jnp.zeros(2, jnp.int32)})


def test_spatial_rescaler_original():
    case = load("cond_spatial_rescaler")
    model = SpatialRescaler(182, 3)
    kernel = torch_state_of_mapper()
    for suffix in ("", "_odd"):
        batch = {"segmentation": jnp.asarray(nhwc(case.inputs["segmentation" + suffix]))}
        shapes = jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch, encode), batch)
        params = to_flax(shapes["params"], kernel)
        ours = model.apply({"params": params}, batch, encode).concat
        assert rel(nchw(ours), case.outputs["c_concat" + suffix]) < 1e-5


def torch_state_of_mapper():
    from tests.golden import weights

    name = "cond_stage_model.channel_mapper.weight"
    state = weights.make_state({name: (3, 182, 1, 1)}, ("cond_stage_model.",), "cond_stage_model.")
    assert list(state) == ["channel_mapper.weight"]
    return state


def test_joined_conditions_are_dropped_together_and_one_by_one():
    """In their shares; a field that is not dropped stays as it is."""
    network = HybridNetwork({"class": ClassEmbedder(5, 8, null_class=True), "semantic": SpatialRescaler(6, 3)})
    u = np.linspace(0, 1, 1000, endpoint=False)
    batch = {"label": np.full(1000, 3), "segmentation": np.full((1000, 2, 2), 4)}
    found = drop_parts(network, batch, jnp.asarray(u), 0.1, 0.05)
    nulls = network.null(batch)
    no_label = np.asarray(found["label"]) == np.asarray(nulls["label"])
    no_map = (np.asarray(found["segmentation"]) == np.asarray(nulls["segmentation"])).all((1, 2))
    assert (no_label & no_map).sum() == 100  # together
    assert (no_label & ~no_map).sum() == 50 and (~no_label & no_map).sum() == 50  # each alone
    assert (np.asarray(found["label"])[~no_label] == 3).all() and (
        np.asarray(found["segmentation"])[~no_map] == 4
    ).all()
    alone = network.parts["class"]
    np.testing.assert_array_equal(alone.part_nulls(batch)[0]["label"], alone.null(batch)["label"])
