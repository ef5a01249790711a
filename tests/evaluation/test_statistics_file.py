"""Files of statistics, in and out."""

import numpy as np
import pytest

from ldm_jax.errors import Missing, UsageError
from ldm_jax.evaluation.frechet import Moments
from ldm_jax.evaluation.statistics_file import read_statistics, write_statistics
from tests.eval_goldens import kinds
from tests.eval_goldens.judge import HERE

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (4, 8, 8, 3), np.uint8)


def statistics(width):
    moments = Moments(width)
    moments.add(RANDOM.standard_normal((50, width)))
    return moments.result()


def test_golden():
    assert not kinds.wrong("npz_mu_sigma")


def test_adms_layout_comes_back(tmp_path):
    (mu, sigma), (mu_s, sigma_s) = statistics(6), statistics(4)
    write_statistics(tmp_path / "new" / "adm.npz", mu, sigma, mu_s, sigma_s, IMAGES)
    file = read_statistics(tmp_path / "new" / "adm.npz")
    assert file.holds == ("mu", "sigma", "mu_s", "sigma_s", "images")
    np.testing.assert_array_equal(file.pictures(), IMAGES)
    np.testing.assert_allclose(file.gaussian().trace, sigma.trace())
    np.testing.assert_allclose(file.gaussian(spatial=True).mean, mu_s)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["adm.npz"]


def test_what_is_missing_is_said(tmp_path):
    write_statistics(tmp_path / "small.npz", *statistics(3))
    file = read_statistics(tmp_path / "small.npz")
    assert file.gaussian().mean.shape == (3,)
    with pytest.raises(Missing, match=r"no mu_s and sigma_s \(of sFID\); it has mu, sigma"):
        file.gaussian(spatial=True)
    with pytest.raises(Missing, match="precision, recall"):
        file.pictures()
    with pytest.raises(Missing, match=r"no mu and sigma; it has images"):
        read_statistics(HERE / "npz" / "images_only.npz").gaussian()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(Missing, match="does not exist"):
        read_statistics(path)
    path.write_bytes(b"no archive")
    with pytest.raises(UsageError, match="cannot be read"):
        read_statistics(path)
    for arrays, message in (
        ({"mu": np.zeros(3)}, "only one of mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "do not fit"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "must be uint8"),
        ({"other": np.zeros(3)}, "holds neither"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "cannot be read"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UsageError, match=message):
            read_statistics(path)
