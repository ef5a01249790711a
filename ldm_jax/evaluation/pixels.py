"""PSNR, mean squared error and SSIM (Wang et al., 2004) of pairs of images, as scikit-image computes them from float64.

Images are [N,H,W] or [N,H,W,C], of any type of number; data_range is the width of their range: 255 for uint8, 1 for
0..1, 2 for -1..1. Everything runs in float64, on the host: float32 loses 1e-4 of SSIM on flat images.
"""

import numpy as np
from jaxtyping import Float, Num

from ldm_jax.errors import UsageError

Images = Num[np.ndarray, "N H W *C"]


def mse(first: Images, second: Images) -> Float[np.ndarray, " N"]:
    """The mean squared error of each pair."""
    first, second = _pair(first, second)
    return np.square(first - second).mean(tuple(range(1, first.ndim)))


def psnr(first: Images, second: Images, data_range: float) -> Float[np.ndarray, " N"]:
    """Of each pair, in dB; equal images give inf."""
    return _decibels(mse(first, second), data_range)


def psnr_of_mean(first: Images, second: Images, data_range: float) -> float:
    """Of the mean squared error over all pairs, in dB (torchmetrics' default): not the mean of the PSNRs."""
    return float(_decibels(mse(first, second).mean(), data_range))


def mean_of_finite(values: Float[np.ndarray, " N"]) -> float:
    """The mean of the finite ones: of PSNRs, without pairs of equal images. inf where all are equal."""
    finite = np.asarray(values)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("inf")


def std_of_finite(values: Float[np.ndarray, " N"]) -> float:
    """The standard deviation (of the set itself) of the finite ones; nan where there are none."""
    finite = np.asarray(values)[np.isfinite(values)]
    return float(finite.std()) if len(finite) else float("nan")


def _decibels(error: np.ndarray, data_range: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / error)


def ssim(first: Images, second: Images, data_range: float, **options) -> Float[np.ndarray, " N"]:
    """The mean of each pair's map, over channels too. options: those of `ssim_map`."""
    maps = ssim_map(first, second, data_range, **options)
    return maps.mean(tuple(range(1, maps.ndim)))


def ssim_map(
    first: Images,
    second: Images,
    data_range: float,
    gaussian_weights: bool = True,
    sigma: float = 1.5,
    win_size: int = 7,
    use_sample_covariance: bool | None = None,
    K1: float = 0.01,
    K2: float = 0.03,
) -> Float[np.ndarray, "N h w *C"]:
    """SSIM where the window fits into the image, so that h and w are smaller by its size - 1.

    gaussian_weights: a Gaussian of `sigma` cut at 3.5 sigma (11 x 11 for 1.5), the paper's; else `win_size` equal
    weights a side, scikit-image's default. use_sample_covariance: n - 1 below; default: only for equal weights.
    Raises UsageError for images smaller than the window.
    """
    first, second = _pair(first, second)
    window = _gaussian(sigma) if gaussian_weights else np.full(win_size, 1 / win_size)
    size = len(window)
    if min(first.shape[1:3]) < size:
        raise UsageError(
            f"SSIM with a window of {size}x{size} needs larger images than {first.shape[1]}x{first.shape[2]}"
        )
    if use_sample_covariance is None:
        use_sample_covariance = not gaussian_weights
    unbiased = size**2 / (size**2 - 1) if use_sample_covariance else 1.0

    def local(x: np.ndarray) -> np.ndarray:
        return _along(_along(x, window, 1), window, 2)

    mean_1, mean_2 = local(first), local(second)
    variance_1 = unbiased * (local(first * first) - mean_1 * mean_1)
    variance_2 = unbiased * (local(second * second) - mean_2 * mean_2)
    covariance = unbiased * (local(first * second) - mean_1 * mean_2)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    above = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return above / ((mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2))


def _gaussian(sigma: float) -> np.ndarray:
    radius = int(3.5 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def _along(x: np.ndarray, window: np.ndarray, axis: int) -> np.ndarray:
    """Weighted sums of neighbours along an axis, only where the window fits."""
    length = x.shape[axis] - len(window) + 1
    parts = (weight * x.take(range(i, i + length), axis) for i, weight in enumerate(window))
    return sum(parts)


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim not in (3, 4):
        raise UsageError(
            f"pairs of images are [N,H,W] or [N,H,W,C], of one shape; got {first.shape} and {second.shape}"
        )
    return first, second
