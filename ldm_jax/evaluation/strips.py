"""Pictures to look at: the first of a set, its nearest pictures of a reference, pairs."""

import numpy as np

from ldm_jax.data.transforms import resize
from ldm_jax.evaluation import metrics
from ldm_jax.evaluation.picture_sets import PictureSet
from ldm_jax.images import grid

SHOWN = 64  # pictures in a grid
NEIGHBOURS = 5
Shown = dict[str, np.ndarray]


def first(pictures: PictureSet) -> np.ndarray:
    """The first pictures in one, uint8 [H,W,3]."""
    return grid(_same_size(pictures.part(0, min(SHOWN, len(pictures)))))


def neighbours(
    pictures: PictureSet, reference: PictureSet, ours: np.ndarray, theirs: np.ndarray,
    most: int = metrics.MOST_NEIGHBOURS,
) -> Shown:  # fmt: skip
    """Rows of a picture and the most similar ones of the reference: for the first pictures, for those that are nearest
    to a picture of the reference (copies would be here), and for those that are farthest from all. ours, theirs: the
    features [N,D] of both sets. most: of each set so many, spread evenly, are compared."""
    mine, other = (metrics.spread_numbers(len(features), most) for features in (ours, theirs))
    found, distances = metrics.nearest(metrics.spread(ours, most), metrics.spread(theirs, most), NEIGHBOURS)
    order, rows = np.argsort(distances[:, 0]), min(8, len(mine))
    chosen = {"nearest": np.arange(rows), "most_similar": order[:rows], "least_similar": order[::-1][:rows]}
    return {name: _beside(pictures, reference, mine[picked], other[found[picked]]) for name, picked in chosen.items()}


def _beside(pictures: PictureSet, reference: PictureSet, picked: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    rows = []
    for i, row in zip(picked, numbers):
        rows += pictures.part(int(i), int(i) + 1)
        rows += [reference.part(int(j), int(j) + 1)[0] for j in row]
    return grid(_same_size(rows), columns=1 + numbers.shape[1])


def pairs(pictures, psnr: np.ndarray) -> Shown:
    """True pictures and what was made of them: the first, those of the smallest and those of the largest PSNR [N]."""
    order = np.argsort(psnr)
    some = {"pairs": np.arange(min(16, len(pictures))), "worst_pairs": order[:8], "best_pairs": order[::-1][:8]}
    return {name: _true_and_made(pictures, picked) for name, picked in some.items()}


def _true_and_made(pictures, picked: np.ndarray) -> np.ndarray:
    rows = []
    for i in map(int, picked):
        rows += pictures.truth(i, i + 1) + pictures.part(i, i + 1)
    return grid(_same_size(rows), columns=8 if len(picked) > 8 else 4)


def _same_size(pictures: list[np.ndarray]) -> np.ndarray:
    """[N,H,W,3]; those of other sizes than the first are resized, for a grid."""
    size = pictures[0].shape[:2]
    return np.stack([image if image.shape[:2] == size else resize(image, size) for image in pictures])
