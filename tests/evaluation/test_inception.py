"""Inception against recorded features; its pools by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import inception
from ldm_jax.evaluation.networks import NETWORKS
from tests.eval_goldens import kinds
from tests.eval_goldens.judge import HERE


@pytest.mark.parametrize("name", kinds.names("inception_features"))
def test_goldens(name):
    assert not kinds.wrong(name)


def test_average_pool_leaves_the_padding_out():
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    found = np.asarray(inception.average_pool(jnp.asarray(x)))[0, ..., 0]
    assert found[0, 0] == np.mean([0, 1, 4, 5]) and found[1, 1] == np.mean(x[0, :, :3])
    np.testing.assert_allclose(inception.average_pool(jnp.ones((2, 5, 6, 3))), 1, rtol=1e-6)


def test_shapes_of_all_taps():
    shape = jax.ShapeDtypeStruct((3, 299, 299, 3), np.float32)
    network = inception.Inception()
    init = jax.eval_shape(network.init, jax.random.key(0), shape)
    found = jax.eval_shape(lambda p, x: network.apply(p, x, tuple(inception.TAPS)), init, shape)
    assert {tap: value.shape[1:] for tap, value in found.items()} == inception.TAPS
    assert NETWORKS["inception"].width == 2048


def test_files_of_others_and_unknown_taps_are_refused():
    shapes = json.loads((HERE / "manifests" / "inception.json").read_text())
    zeros = {key: np.zeros(shape, np.float32) for key, shape in shapes.items() if "Mixed" not in key}
    with pytest.raises(UsageError, match="another architecture"):
        inception.params(zeros)
    with pytest.raises(UsageError, match="no taps"):
        jax.eval_shape(
            lambda x: inception.Inception().init(jax.random.key(0), x, ("1024",)),
            jnp.zeros((1, 299, 299, 3)),
        )


def test_counters_of_batches_are_not_needed():
    shapes = json.loads((HERE / "manifests" / "inception.json").read_text())
    state = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    without = {key: array for key, array in state.items() if not key.endswith("num_batches_tracked")}
    assert len(without) < len(state)
    assert jax.tree.structure(inception.params(state)) == jax.tree.structure(inception.params(without))
