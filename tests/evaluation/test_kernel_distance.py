"""KID against recorded values and plain sums."""

import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation.kernel_distance import kernel_distance
from tests.eval_goldens import kinds

X, Y = np.random.default_rng(0).standard_normal((2, 12, 5)).astype(np.float32)


@pytest.mark.parametrize("name", kinds.names("kid"))
def test_goldens(name):
    assert not kinds.wrong(name)


def test_whole_sets_are_a_plain_double_sum():
    def kernel(a, b):
        return (float(a.astype(np.float64) @ b.astype(np.float64)) / 5 + 1) ** 3

    def among(rows):
        return np.mean([kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])

    expected = among(X) + among(Y) - 2 * np.mean([kernel(a, b) for a in X for b in Y])
    found = kernel_distance(X, Y, subsets=3, subset_size=12)
    np.testing.assert_allclose(found.mean, expected, rtol=1e-12)
    assert found.std < 1e-12


def test_equal_sets_are_near_0_and_others_are_not():
    same = kernel_distance(X, X, subsets=50, subset_size=6)
    assert abs(same.mean) < kernel_distance(X, Y + 2, subsets=50, subset_size=6).mean


def test_what_is_refused():
    with pytest.raises(UsageError, match="subset_size=13"):
        kernel_distance(X, Y, subset_size=13)
    with pytest.raises(UsageError, match="5 and of 4"):
        kernel_distance(X, Y[:, :4], subset_size=5)
