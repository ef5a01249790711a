"""Names of leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import tree

PARAMS = {"a": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "b": {"c": {"scale": jnp.ones(4)}}}


def test_flatten_and_back():
    named = tree.flatten(PARAMS)
    assert list(named) == ["a/bias", "a/kernel", "b/c/scale"]
    assert jax.tree.structure(tree.unflatten(named)) == jax.tree.structure(PARAMS)


def test_flatten_names_tuples_too():
    assert list(tree.flatten({"state": ({"mu": 1}, 2)})) == ["state/0/mu", "state/1"]


def test_unflatten_refuses_a_leaf_that_is_a_branch():
    with pytest.raises(ValueError, match="already a leaf"):
        tree.unflatten({"a": 1, "a/b": 2})
    with pytest.raises(ValueError, match="also a branch"):
        tree.unflatten({"a/b": 2, "a": 1})


def test_select_and_count():
    assert list(tree.select(PARAMS, r"^a/.*bias$")) == ["a/bias"]
    assert tree.count(PARAMS) == 13
    assert tree.count({"x": jax.ShapeDtypeStruct((), jnp.float32)}) == 1


def test_compare_names_both_sides():
    other = {"a": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(3)}, "d": jnp.zeros(1)}
    difference = tree.compare(other, PARAMS)
    assert difference.missing == ["b/c/scale"] and difference.unexpected == ["d"]
    assert difference.shapes == ["a/kernel: (3, 2), expected (2, 3)"]
    assert difference and "missing (1):" in str(difference)
    assert not tree.compare(PARAMS, PARAMS)


def test_a_digest_knows_every_number():
    values = {"a": np.arange(6.0).reshape(2, 3), "b": jnp.ones(2)}
    assert tree.digest(values) == tree.digest(jax.tree.map(np.array, values))
    assert tree.digest(values) != tree.digest(values | {"b": jnp.array([1, 1.5])})
