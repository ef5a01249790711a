"""PSNR and SSIM against recorded values and closed forms."""

import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import pixels
from tests.eval_goldens import kinds

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)


@pytest.mark.parametrize("name", kinds.names("pixels"))
def test_goldens(name):
    assert not kinds.wrong(name)


def test_equal_and_constant_images_in_closed_form():
    assert (pixels.psnr(IMAGES, IMAGES, 255) == np.inf).all() and pixels.mean_of_finite([np.inf, 3, 5]) == 4
    assert pixels.mean_of_finite([np.inf]) == np.inf
    np.testing.assert_allclose(pixels.ssim(IMAGES, IMAGES, 255), 1, rtol=1e-12)
    low, high = np.full((1, 16, 16), 50, np.uint8), np.full((1, 16, 16), 60, np.uint8)
    np.testing.assert_allclose(pixels.psnr(low, high, 255), 10 * np.log10(255**2 / 100))
    c1 = (0.01 * 255) ** 2
    np.testing.assert_allclose(pixels.ssim(low, high, 255), (2 * 3000 + c1) / (2500 + 3600 + c1), rtol=1e-9)


def test_uint8_does_not_wrap_and_range_scales():
    other = IMAGES[::-1]
    as_float = [x.astype(np.float64) / 127.5 - 1 for x in (IMAGES, other)]
    np.testing.assert_allclose(pixels.psnr(IMAGES, other, 255), pixels.psnr(*as_float, 2), rtol=1e-12)
    np.testing.assert_allclose(pixels.mse(IMAGES, other), 127.5**2 * pixels.mse(*as_float), rtol=1e-12)
    for options in ({}, {"gaussian_weights": False}, {"sigma": 1.0, "use_sample_covariance": True}):
        maps = pixels.ssim_map(IMAGES, other, 255, **options)
        np.testing.assert_allclose(maps[..., 1], pixels.ssim_map(IMAGES[..., 1], other[..., 1], 255, **options))


def test_what_is_refused():
    with pytest.raises(UsageError, match="11x11 needs larger images than 10x24"):
        pixels.ssim(IMAGES[:, :10], IMAGES[:, :10], 255)
    with pytest.raises(UsageError, match="one shape"):
        pixels.psnr(IMAGES, IMAGES[:2], 255)
