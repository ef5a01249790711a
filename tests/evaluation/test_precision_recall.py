"""Precision, recall, density and coverage against recorded values and plain loops."""

import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation.precision_recall import precision_recall
from tests.eval_goldens import kinds

RANDOM = np.random.default_rng(0)
GENERATED, REAL = RANDOM.standard_normal((40, 3)), 1.2 * RANDOM.standard_normal((50, 3)) + 0.5


@pytest.mark.parametrize("name", kinds.names("prc"))
def test_goldens(name):
    assert not kinds.wrong(name)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_plain_loops(k, block):
    def radii(points):
        apart = np.linalg.norm(points[:, None] - points, axis=-1)
        return np.sort(apart, 1)[:, k]  # the first is the point itself

    apart = np.linalg.norm(GENERATED[:, None] - REAL, axis=-1)
    in_real, in_generated = apart <= radii(REAL), apart <= radii(GENERATED)[:, None]
    found = precision_recall(GENERATED, REAL, k, block)
    assert found.precision == in_real.any(1).mean() and found.recall == in_generated.any(0).mean()
    np.testing.assert_allclose([found.density, found.coverage], [in_real.sum(1).mean() / k, in_real.any(0).mean()])
    np.testing.assert_allclose(found.radii_real, radii(REAL))
    np.testing.assert_allclose(found.radii_generated, radii(GENERATED))


def test_a_set_with_itself_and_far_away():
    """Far away: the large mean must not eat the distances."""
    for offset in (0, 1e6):
        same = precision_recall(REAL + offset, REAL[::-1] + offset)
        assert (same.precision, same.recall, same.coverage, same.f_score) == (1, 1, 1, 1)
    apart = precision_recall(GENERATED + 100, REAL)
    assert (apart.precision, apart.recall, apart.density, apart.coverage, apart.f_score) == (0, 0, 0, 0, 0)


def test_what_is_refused():
    with pytest.raises(UsageError, match="k=40"):
        precision_recall(GENERATED, REAL, 40)
    with pytest.raises(UsageError, match="3 and of 2"):
        precision_recall(GENERATED, REAL[:, :2])
