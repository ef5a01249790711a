"""The Frechet distance of two Gaussians (Dowson and Landau, 1982), which is FID where the features are Inception's.

    d(features_1, features_2) = frechet_distance(Gaussian.of_features(features_1), Gaussian.of_features(features_2))

d = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). Covariances have n - 1 below and nothing added. The last trace is
the sum of the singular values of R1 R2^T, where R^T R = S: no root of a product is taken, so that it is real, and a set
has the distance 0 to itself however few its images are. All is float64, on the host.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UsageError

BLOCK = 4096  # rows that are turned to float64 at a time


@dataclass(frozen=True)
class Gaussian:
    """mean [D]; root [R,D] with root^T root = covariance, R = D or the number of rows that there were."""

    mean: Float[np.ndarray, " D"]
    root: Float[np.ndarray, "R D"]

    @classmethod
    def of_features(cls, features: Float[np.ndarray, "N D"]) -> "Gaussian":
        """Exact where rows are fewer than columns: their covariance is never formed.

        Raises UsageError for fewer than two rows, and for numbers that are not finite.
        """
        features = np.asarray(features)
        if len(features) > features.shape[1]:
            moments = Moments(features.shape[1])
            moments.add(features)
            return cls.of_moments(*moments.result())
        _check_rows(len(features))
        features = features.astype(np.float64)
        _check_finite(features)
        mean = features.mean(0)
        return cls(mean, (features - mean) / np.sqrt(len(features) - 1))

    @classmethod
    def of_moments(cls, mean: Float[np.ndarray, " D"], covariance: Float[np.ndarray, "D D"]) -> "Gaussian":
        """From a mean and a covariance, by its eigenvectors.

        Eigenvalues that are 0 but for rounding (below 1e-15 of the largest, times D) count as 0: their roots, 1e-8
        each, would add up. Raises UsageError for shapes that do not fit, and for numbers that are not finite.
        """
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UsageError(f"a mean {mean.shape} and a covariance {covariance.shape} do not belong together")
        _check_finite(mean)
        _check_finite(covariance)
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        kept = values > max(values[-1], 0.0) * len(mean) * 1e-15
        return cls(mean, np.sqrt(values[kept])[:, None] * vectors[:, kept].T)

    @property
    def trace(self) -> float:
        """Of the covariance."""
        return float(np.square(self.root).sum())


class Moments:
    """Mean and covariance of rows that come in batches: float64 sums of what is left after a first guess of the mean.

    moments = Moments(2048); moments.add(features) for each batch; mean, covariance = moments.result()
    """

    def __init__(self, width: int):
        self.count = 0
        self._origin: np.ndarray | None = None
        self._sum = np.zeros(width)
        self._products = np.zeros((width, width))

    def add(self, features: Float[np.ndarray, "N D"]) -> None:
        """Raises UsageError for rows of another width, and for numbers that are not finite."""
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != len(self._sum):
            raise UsageError(f"features {features.shape} do not have the width {len(self._sum)}")
        for start in range(0, len(features), BLOCK):
            block = features[start : start + BLOCK].astype(np.float64)
            _check_finite(block)
            if self._origin is None:
                self._origin = block.mean(0)
            block -= self._origin
            self.count += len(block)
            self._sum += block.sum(0)
            self._products += block.T @ block

    def result(self) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
        """(mean, covariance with n - 1). Raises UsageError for fewer than two rows."""
        _check_rows(self.count)
        offset = self._sum / self.count
        covariance = (self._products - self.count * np.outer(offset, offset)) / (self.count - 1)
        return self._origin + offset, covariance


class Frechet(NamedTuple):
    """distance = mean_term + trace_1 + trace_2 - 2 trace_root; below 0 only by rounding."""

    distance: float
    mean_term: float
    trace_1: float
    trace_2: float
    trace_root: float


def frechet_distance(first: Gaussian, second: Gaussian) -> Frechet:
    """The same in both orders. Raises UsageError for widths that differ."""
    if first.mean.shape != second.mean.shape:
        raise UsageError(
            f"features of {len(first.mean)} and of {len(second.mean)} numbers cannot be compared: they are of two "
            "networks"
        )
    difference = first.mean - second.mean
    mean_term = float(difference @ difference)
    trace_root = float(np.linalg.svd(first.root @ second.root.T, compute_uv=False).sum())
    distance = mean_term + first.trace + second.trace - 2 * trace_root
    return Frechet(distance, mean_term, first.trace, second.trace, trace_root)


def _check_rows(count: int) -> None:
    if count < 2:
        raise UsageError(f"a covariance needs two images at least; there is {count}")


def _check_finite(numbers: np.ndarray) -> None:
    if not np.isfinite(numbers).all():
        raise UsageError("features or statistics hold numbers that are not finite")
