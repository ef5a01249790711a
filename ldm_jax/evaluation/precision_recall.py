"""Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020) of features.

Around every point of a set lies a ball that reaches to its k-th neighbour in the set, itself not counted. Precision:
the share of generated points in some real ball; recall: of real points in some generated ball; density: the mean number
of real balls around a generated point, divided by k; coverage: the share of real balls with a generated point inside.

Distances are float64, on the host, in blocks of rows. A point on the edge of a ball is inside: edges are compared with
a slack of 1e-12, because two ways to the same distance round differently.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UsageError

SLACK = 1e-12
BLOCK = 1024


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in 0..1 (density may be above 1); radii_real [M], radii_generated [N]: of the balls."""

    precision: float
    recall: float
    density: float
    coverage: float
    radii_real: Float[np.ndarray, " M"]
    radii_generated: Float[np.ndarray, " N"]

    @property
    def f_score(self) -> float:
        """The harmonic mean of precision and recall; 0 where both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def precision_recall(
    generated: Float[np.ndarray, "N D"], real: Float[np.ndarray, "M D"], k: int = 3, block: int = BLOCK
) -> PrecisionRecall:
    """Of two sets of features. block: rows whose distances are held at once.

    Raises UsageError where a set has not more than k points, and for widths that differ.
    """
    if generated.shape[1] != real.shape[1]:
        raise UsageError(f"features of {generated.shape[1]} and of {real.shape[1]} numbers cannot be compared")
    if not 1 <= k < min(len(generated), len(real)):
        raise UsageError(f"k={k} neighbours need more than {k} images in both sets: {len(generated)} and {len(real)}")
    generated, real = np.asarray(generated, np.float64), np.asarray(real, np.float64)
    middle = real.mean(0)  # distances do not change, but lose less when the numbers are small
    generated, real = generated - middle, real - middle
    ball_generated, ball_real = _radii(generated, k, block), _radii(real, k, block)
    edge_generated, edge_real = ball_generated * (1 + SLACK), ball_real * (1 + SLACK)
    inside_generated = np.zeros(len(real), bool)  # in some generated ball
    covered = np.zeros(len(real), bool)
    balls_around = []
    for start, distances in squared_distances(generated, real, block):
        in_real = distances <= edge_real
        balls_around.append(in_real.sum(1))
        covered |= in_real.any(0)
        inside_generated |= (distances <= edge_generated[start : start + len(distances), None]).any(0)
    around = np.concatenate(balls_around)
    return PrecisionRecall(
        precision=float((around > 0).mean()),
        recall=float(inside_generated.mean()),
        density=float(around.mean() / k),
        coverage=float(covered.mean()),
        radii_real=np.sqrt(ball_real),
        radii_generated=np.sqrt(ball_generated),
    )


def _radii(points: np.ndarray, k: int, block: int) -> np.ndarray:
    """Squared distance of every point [N,D] to its k-th neighbour, [N]."""
    radii = []
    for start, distances in squared_distances(points, points, block):
        own = np.arange(len(distances))
        distances[own, start + own] = np.inf
        radii.append(np.partition(distances, k - 1, axis=1)[:, k - 1])
    return np.concatenate(radii)


def squared_distances(first: np.ndarray, second: np.ndarray, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, squared distances [block,M]) for each block of rows of `first`."""
    square = np.square(second).sum(1)
    for start in range(0, len(first), block):
        rows = first[start : start + block]
        total = np.square(rows).sum(1)[:, None] + square
        distances = total - 2 * (rows @ second.T)
        # Equal points are apart by rounding alone, which is well below 1e-12 of their squares.
        yield start, np.where(distances <= SLACK * total, 0.0, distances)
