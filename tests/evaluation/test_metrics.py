"""Which metrics two sets have, and what they are called."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import metrics, networks
from ldm_jax.evaluation.statistics_file import StatisticsFile
from tests.evaluation.test_features import NETWORK

RANDOM = np.random.default_rng(0)


def normal(n, d=5, shift=0.0):
    return {"mean": RANDOM.standard_normal((n, d)).astype(np.float32) + np.float32(shift)}


def test_a_set_against_itself():
    few, many = normal(3, 64), normal(500)
    for features in (few, many):
        assert abs(metrics.of_sets(NETWORK, features, features)["FD-tiny"]) < 1e-6
    values = metrics.of_sets(NETWORK, many, many)
    assert values["precision-tiny"] == values["recall-tiny"] == values["coverage-tiny"] == 1


def test_both_orders_give_the_same_distance_and_exchange_precision_and_recall():
    first, second = normal(200), normal(300, shift=0.5)
    one, other = metrics.of_sets(NETWORK, first, second), metrics.of_sets(NETWORK, second, first)
    assert one["FD-tiny"] == pytest.approx(other["FD-tiny"], abs=1e-9)
    assert one["precision-tiny"] == other["recall-tiny"] < 1


def test_small_sets_have_fewer_metrics():
    assert set(metrics.of_sets(NETWORK, normal(3), normal(9))) == {"FD-tiny", "KD-tiny", "KD-tiny_std"}
    assert set(metrics.of_sets(NETWORK, normal(3), normal(3))) == {"FD-tiny", "KD-tiny"}
    with pytest.raises(UsageError, match="two images"):
        metrics.of_sets(NETWORK, normal(1), normal(9))


def test_names_are_inceptions_for_inception_alone():
    def features(n):
        return {"2048": RANDOM.standard_normal((n, 8)), "spatial": RANDOM.standard_normal((n, 2, 2, 7)),
                "logits_unbiased": RANDOM.standard_normal((n, 6))}  # fmt: skip

    values = metrics.of_sets(networks.find("inception"), features(40), features(50))
    assert {"FID", "sFID", "IS", "KID", "precision", "recall", "density", "coverage"} <= set(values)
    assert not any("FID" in name for name in metrics.of_sets(NETWORK, normal(20), normal(20)))


def inception_features(n):
    return {"2048": RANDOM.standard_normal((n, 2048)), "spatial": RANDOM.standard_normal((n, 2, 2, 7)),
            "logits_unbiased": RANDOM.standard_normal((n, 6))}  # fmt: skip


@pytest.mark.parametrize("sizes", [(3, 3), (3, 9), (9, 40), (40, 9), (10, 10)])
def test_the_names_are_those_that_are_measured(sizes):
    measured = metrics.of_sets(NETWORK, *map(normal, sizes))
    assert set(metrics.names(NETWORK, *sizes)) == set(measured)
    small = replace(networks.find("inception"), taps={"2048": (8,)})
    features = [found | {"2048": found["2048"][:, :8]} for found in map(inception_features, sizes)]
    assert set(metrics.names(small, *sizes)) == set(metrics.of_sets(small, *features))


def test_the_inception_score_needs_no_reference():
    inception, ours = replace(networks.find("inception"), taps={"2048": (8,)}), inception_features(20)
    ours["2048"] = ours["2048"][:, :8]
    found = metrics.of_statistics(inception, ours, StatisticsFile(Path("some.npz"), np.zeros(8), np.eye(8)))
    assert set(found) == {"FID", "IS", "IS_std"}
    expected = metrics.of_sets(inception, ours, ours)
    assert (found["IS"], found["IS_std"]) == (expected["IS"], expected["IS_std"])


def test_published_statistics():
    ours, theirs = normal(100), normal(100)
    expected = metrics.of_sets(NETWORK, ours, theirs)["FD-tiny"]
    mean, covariance = theirs["mean"].astype(float).mean(0), np.cov(theirs["mean"].T.astype(float))
    statistics = StatisticsFile(Path("some.npz"), mean, covariance)
    found = metrics.of_statistics(NETWORK, ours, statistics)
    assert found == {"FD-tiny": pytest.approx(expected, rel=1e-9)}
    with pytest.raises(UsageError, match="another network"):
        metrics.of_statistics(replace(NETWORK, taps={"mean": (6,)}), ours, statistics)


def test_pairs():
    truth = [RANDOM.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(3)]
    made = [truth[0], np.full_like(truth[1], 7), truth[2]]
    values = metrics.of_pairs(made, truth)
    assert np.isinf(values["PSNR"][[0, 2]]).all()
    assert values["PSNR"][1] == pytest.approx(10 * np.log10(255**2 / np.square(truth[1] - 7.0).mean()))
    assert values["SSIM"][0] == pytest.approx(1) and values["SSIM"][1] < 0.1
    assert set(metrics.of_pairs([made[0][:8]], [truth[0][:8]])) == {"PSNR"}


def test_nearest_neighbours():
    ours, theirs = normal(20)["mean"], normal(30)["mean"]
    numbers, distances = metrics.nearest(ours, theirs, 3, block=7)
    gaps = np.linalg.norm(ours[:, None].astype(float) - theirs, axis=-1)
    np.testing.assert_array_equal(numbers, np.argsort(gaps, 1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(gaps, 1)[:, :3], atol=1e-6)
    for piece in (1, 2, 7, 29):
        in_pieces = metrics.nearest(ours, theirs, 3, block=7, piece=piece)
        np.testing.assert_array_equal(in_pieces[0], numbers)
        np.testing.assert_allclose(in_pieces[1], distances, rtol=1e-12)
    assert metrics.nearest(ours, theirs[:2], 3)[0].shape == (20, 2)
    twice = np.concatenate([theirs, theirs])  # of equal ones the first comes first
    assert (metrics.nearest(ours, twice, 2, piece=13)[0] == numbers[:, :1] + [0, 30]).all()


def test_precision_of_some_is_that_of_sets_spread_evenly():
    first, second = normal(90), normal(120, shift=0.5)
    some = metrics.of_sets(NETWORK, first, second, most_neighbours=30)
    parts = ({"mean": features["mean"][:: len(features["mean"]) // 30]} for features in (first, second))
    expected = metrics.of_sets(NETWORK, *parts)
    assert [some[f"{n}-tiny"] for n in ("precision", "recall")] == [
        expected[f"{n}-tiny"] for n in ("precision", "recall")
    ]
    assert some["FD-tiny"] == metrics.of_sets(NETWORK, first, second)["FD-tiny"]
