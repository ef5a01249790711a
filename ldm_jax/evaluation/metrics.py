"""Numbers of one set of pictures against another, and of pairs of pictures: which metrics there are, and their names.

"FID", "KID", "IS" and "sFID" are those of Inception alone; features of another network have names that say so.
"""

import numpy as np

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import pixels
from ldm_jax.evaluation.frechet import Gaussian, frechet_distance
from ldm_jax.evaluation.inception_score import inception_score
from ldm_jax.evaluation.kernel_distance import kernel_distance
from ldm_jax.evaluation.networks import FeatureNetwork
from ldm_jax.evaluation.precision_recall import precision_recall, squared_distances
from ldm_jax.evaluation.statistics_file import StatisticsFile

SUBSETS = 100
SUBSET = 1000  # of the kernel distance, or all pictures of the smaller set
SPLITS = 10
K = 3  # neighbours of precision and recall
MOST_NEIGHBOURS = 50_000  # pictures a set for them
NEIGHBOURS = ("precision", "recall", "density", "coverage")
SSIM_WINDOW = 11  # pixels; smaller pictures have no SSIM

RULES = dict(neighbours=K, inception_score_parts=SPLITS, kernel_subsets=SUBSETS, kernel_subset_at_most=SUBSET,
             ssim_window=SSIM_WINDOW)  # fmt: skip
Features = dict[str, np.ndarray]


def taps_of(network: FeatureNetwork) -> tuple[str, ...]:
    """What is needed of a network for all its metrics."""
    return (network.tap, "spatial", "logits_unbiased") if network.name == "inception" else (network.tap,)


def names(network: FeatureNetwork, count: int, reference: int) -> list[str]:
    """The metrics of `of_sets`, of so many pictures against so many of the reference."""
    inception, smaller, larger = network.name == "inception", *sorted((count, reference))
    other = "" if inception else f"-{network.name}"
    kernel = "KID" if inception else f"KD{other}"
    found = [network.distance_name()]
    found += ["sFID"] if inception else []
    found += ["IS", "IS_std"] if inception and count >= SPLITS else []
    found += [kernel, f"{kernel}_std"] if min(SUBSET, smaller) < larger else [kernel]
    return found + [f"{name}{other}" for name in NEIGHBOURS if smaller > K]


def of_sets(
    network: FeatureNetwork, generated: Features, reference: Features, most_neighbours: int = MOST_NEIGHBOURS
) -> dict[str, float]:
    """{metric: value} of two sets of features, each {tap: [N,...]}. Metrics for which a set is too small are left out.

    most_neighbours: of each set so many, spread evenly, for precision, recall, density and coverage, whose work grows
    with the product of the sets. UsageError for fewer than two pictures in a set.
    """
    ours, theirs = generated[network.tap], reference[network.tap]
    inception = network.name == "inception"
    other = "" if inception else f"-{network.name}"
    values = {network.distance_name(): _distance(*map(Gaussian.of_features, (ours, theirs)))}
    if inception:
        values["sFID"] = _distance(_spatial(generated), _spatial(reference))
        values |= _score(generated)
    smaller, larger = sorted((len(ours), len(theirs)))
    size = min(SUBSET, smaller)
    kernel, name = (
        kernel_distance(ours, theirs, SUBSETS if size < larger else 1, size),
        "KID" if inception else f"KD{other}",
    )
    values |= {name: kernel.mean} | ({f"{name}_std": kernel.std} if size < larger else {})
    if smaller > K:
        found = precision_recall(spread(ours, most_neighbours), spread(theirs, most_neighbours), K)
        values |= {f"{name}{other}": getattr(found, name) for name in NEIGHBOURS}
    return {name: float(value) for name, value in values.items()}


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """All rows, or `most` of them, spread evenly."""
    return rows if len(rows) <= most else rows[spread_numbers(len(rows), most)]


def spread_numbers(count: int, most: int) -> np.ndarray:
    """The numbers of the rows that `spread` takes."""
    most = min(count, most)
    return np.arange(most) * count // most


def distance(network: FeatureNetwork, generated: Features, reference: Features) -> dict[str, float]:
    """{"FID" or the like: value} alone."""
    pair = (Gaussian.of_features(features[network.tap]) for features in (generated, reference))
    return {network.distance_name(): _distance(*pair)}


def check_statistics(network: FeatureNetwork, statistics: StatisticsFile) -> None:
    """UsageError where another network made them."""
    if network.width != (there := len(statistics.gaussian().mean)):
        raise UsageError(
            f"the statistics in {statistics.path} have {there} numbers, {network.name} gives {network.width}: another "
            f"network made them. Leave {network.name} out, or compare with pictures"
        )


def of_statistics(network: FeatureNetwork, generated: Features, statistics: StatisticsFile) -> dict[str, float]:
    """{metric: value} against published statistics, which allow Frechet distances alone; and IS, which compares with
    nothing."""
    check_statistics(network, statistics)
    reference = statistics.gaussian()
    values = {network.distance_name(): _distance(Gaussian.of_features(generated[network.tap]), reference)}
    if network.name == "inception":
        values |= _score(generated)
        if statistics.mu_s is not None:
            values["sFID"] = _distance(_spatial(generated), statistics.gaussian(spatial=True))
    return values


def _score(features: Features) -> dict[str, float]:
    """{"IS", "IS_std"}; {} for fewer pictures than parts."""
    if len(logits := features["logits_unbiased"]) < SPLITS:
        return {}
    score = inception_score(logits, SPLITS)
    return {"IS": score.mean, "IS_std": score.std}


def _distance(first: Gaussian, second: Gaussian) -> float:
    return frechet_distance(first, second).distance


def _spatial(features: Features) -> Gaussian:
    return Gaussian.of_features(features["spatial"].reshape(len(features["spatial"]), -1))


def of_pairs(made: list[np.ndarray], truth: list[np.ndarray]) -> dict[str, np.ndarray]:
    """{"PSNR", "SSIM": [N]} of pictures uint8 [H,W,3] of one size. Equal pictures have an infinite PSNR."""
    first, second = np.stack(made), np.stack(truth)
    values = {"PSNR": pixels.psnr(first, second, 255)}
    if min(first.shape[1:3]) >= SSIM_WINDOW:
        values["SSIM"] = pixels.ssim(first, second, 255)
    return values


def nearest(
    features: np.ndarray, reference: np.ndarray, k: int, block: int = 512, piece: int = 16_384
) -> tuple[np.ndarray, np.ndarray]:
    """(numbers [N,k], distances [N,k]) of the k nearest rows of `reference` [M,D] to those of `features` [N,D].

    At once, so many rows of `features` (block) are compared with so many of `reference` (piece), in float64.
    """
    k = min(k, len(reference))
    numbers, best = np.zeros((len(features), 0), np.int64), np.zeros((len(features), 0))
    for first in range(0, len(reference), piece):
        theirs = reference[first : first + piece].astype(np.float64)
        parts = []
        for start in range(0, len(features), block):
            rows = slice(start, start + block)
            ((_, distances),) = squared_distances(features[rows].astype(np.float64), theirs, block)
            here = np.broadcast_to(np.arange(first, first + len(theirs)), distances.shape)
            parts.append(_smallest(np.hstack([numbers[rows], here]), np.hstack([best[rows], distances]), k))
        numbers, best = map(np.concatenate, zip(*parts))
    return numbers, np.sqrt(np.maximum(best, 0))


def _smallest(numbers: np.ndarray, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the k smallest distances in their order, or all where there are fewer, and their numbers."""
    if k < distances.shape[1]:
        some = np.argpartition(distances, k - 1, axis=1)[:, :k]
        numbers, distances = (np.take_along_axis(array, some, 1) for array in (numbers, distances))
    order = np.lexsort((numbers, distances), axis=1)
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(distances, order, 1)
