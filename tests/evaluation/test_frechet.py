"""The Frechet distance against recorded values, closed forms, and where it usually goes wrong."""

import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation.frechet import Gaussian, Moments, frechet_distance
from tests.eval_goldens import kinds

RANDOM = np.random.default_rng(0)


def features(count, width, scale=1.0):
    return (scale * RANDOM.standard_normal((count, width)) + 1).astype(np.float32)


def moments(*parts):
    found = Moments(parts[0].shape[1])
    for part in parts:
        found.add(part)
    return found.result()


def by_moments(*parts):
    return Gaussian.of_moments(*moments(*parts))


@pytest.mark.parametrize("name", kinds.names("frechet"))
def test_goldens(name):
    assert not kinds.wrong(name)


def test_diagonal_gaussians_in_closed_form():
    first, second = RANDOM.uniform(0, 3, (2, 20))
    mean = RANDOM.standard_normal((2, 20))
    found = frechet_distance(*(Gaussian.of_moments(m, np.diag(s**2)) for m, s in zip(mean, (first, second))))
    expected = np.square(mean[0] - mean[1]).sum() + np.square(first - second).sum()
    np.testing.assert_allclose(found.distance, expected, rtol=1e-12)
    np.testing.assert_allclose([found.trace_1, found.trace_root], [np.square(first).sum(), (first * second).sum()])


def test_a_shift_and_a_scale_in_closed_form():
    """Rows times s, plus d: (1 - s)^2 tr S + |m (1 - s) - d|^2."""
    x = features(60, 30).astype(np.float64)
    found = frechet_distance(Gaussian.of_features(x), Gaussian.of_features(1.5 * x + 2)).distance
    expected = 0.25 * np.cov(x.T).trace() + np.square(0.5 * x.mean(0) + 2).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("count", [2, 40, 199, 200, 201, 500])
@pytest.mark.parametrize("gaussian", [Gaussian.of_features, by_moments])
def test_a_set_with_itself_is_0_however_few(count, gaussian):
    x = features(count, 200)
    shuffled = gaussian(x[RANDOM.permutation(count)])
    assert abs(frechet_distance(gaussian(x), gaussian(x)).distance) < 1e-9
    assert abs(frechet_distance(gaussian(x), shuffled).distance) < 1e-9


def test_halves_in_both_orders_and_both_ways():
    """The same whichever set comes first, whichever half is added first, and with features or moments."""
    x, y = features(150, 96), features(90, 96, 1.3)
    there = frechet_distance(Gaussian.of_features(x), Gaussian.of_features(y))
    back = frechet_distance(Gaussian.of_features(y), Gaussian.of_features(x))
    np.testing.assert_allclose([there.distance, there.trace_1], [back.distance, back.trace_2], rtol=1e-12)
    one, other = moments(x[:70], x[70:]), moments(x[70:], x[:70])
    np.testing.assert_allclose(one[0], other[0], rtol=1e-12)
    np.testing.assert_allclose(one[1], other[1], atol=1e-13)
    np.testing.assert_allclose(one[1], np.cov(x.T.astype(np.float64)), atol=1e-12)
    mixed = frechet_distance(by_moments(x[:70], x[70:]), by_moments(y))
    np.testing.assert_allclose(mixed.distance, there.distance, atol=1e-6)


def test_wide_and_few_agree_with_moments():
    """Fewer rows than columns: from features and from a covariance, whose rounding must not add up."""
    x, y = features(20, 300), features(25, 300)
    exact = frechet_distance(Gaussian.of_features(x), Gaussian.of_features(y)).distance
    np.testing.assert_allclose(frechet_distance(by_moments(x), by_moments(y)).distance, exact, atol=1e-9)


def test_large_means_and_float32_sums():
    x = features(3000, 16) + np.float32(1000)
    np.testing.assert_allclose(moments(x)[1], np.cov(x.T.astype(np.float64)), rtol=1e-9, atol=1e-12)


def test_what_is_refused():
    x = features(10, 4)
    with pytest.raises(UsageError, match="two images"):
        Gaussian.of_features(x[:1])
    with pytest.raises(UsageError, match="two images"):
        moments(x[:1])
    with pytest.raises(UsageError, match="4 and of 3"):
        frechet_distance(Gaussian.of_features(x), Gaussian.of_features(x[:, :3]))
    with pytest.raises(UsageError, match="not finite"):
        Gaussian.of_features(np.where(np.eye(10, 4) > 0, np.nan, x))
    with pytest.raises(UsageError, match="width 4"):
        Moments(4).add(x[:, :3])
    with pytest.raises(UsageError, match="belong together"):
        Gaussian.of_moments(np.zeros(3), np.eye(4))
