"""KID, the kernel distance of features (Binkowski et al., 2018), by torch-fidelity's rule.

Squared maximum mean discrepancy, unbiased, with the kernel (x . y / D + 1)^3, on subsets that are drawn anew each time.
Float64, on the host. It can be negative, and is not 0 for a set with itself: its two subsets differ.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UsageError


class KernelDistance(NamedTuple):
    """mean and standard deviation (of the subsets themselves) over the subsets."""

    mean: float
    std: float


def kernel_distance(
    generated: Float[np.ndarray, "N D"],
    real: Float[np.ndarray, "M D"],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
) -> KernelDistance:
    """Of two sets of features; the order matters, because it is that of the draws.

    gamma: what x . y is multiplied by, default 1 / D. Raises UsageError for a subset larger than a set, of one row, or
    for widths that differ.
    """
    if generated.shape[1] != real.shape[1]:
        raise UsageError(f"features of {generated.shape[1]} and of {real.shape[1]} numbers cannot be compared")
    smaller = min(len(generated), len(real))
    if not 2 <= subset_size <= smaller:
        raise UsageError(
            f"subset_size={subset_size} must be 2 at least, and at most {smaller}, the smaller set's images"
        )
    generated, real = np.asarray(generated, np.float64), np.asarray(real, np.float64)
    gamma = 1 / generated.shape[1] if gamma is None else gamma

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (gamma * (x @ y.T) + coef0) ** degree

    random, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        x = generated[random.choice(len(generated), subset_size, replace=False)]
        y = real[random.choice(len(real), subset_size, replace=False)]
        values.append(_without_diagonal(kernel(x, x)) + _without_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean())
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _without_diagonal(matrix: np.ndarray) -> float:
    """The mean of what is not on the diagonal of [n,n]."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))
