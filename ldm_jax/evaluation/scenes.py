"""Reads scenes of coloured shapes (data/shapes.py) back from their pixels: what is there, of which colour, where.

For metrics of conditional models on the built-in data. It depends on how scenes are drawn and on no network. Shapes are
the connected regions of saturated colour, since backgrounds are muted; a region's kind is that of the drawn shape that
it overlaps best, at the centre and radius that the region's own centroid and area give.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ldm_jax.data.shapes import CLASS_NAMES, COLOURS, KINDS, RULES, SIMPLE_KINDS

# Colourfulness (largest minus smallest channel): backgrounds reach 75 at most, shapes have 90 to 260.
_SATURATED = 75
_SMALLEST, _LARGEST = 0.01, 0.6  # of the image; smaller regions are specks, larger ones no shape
_TURNS = np.linspace(-RULES.turn, RULES.turn, 9)
_CELLS = 64  # templates are drawn on so many cells a side, from -1.1 to 1.1 radii


@dataclass(frozen=True)
class Found:
    """A shape. box: [x0,y0,x1,y1] in 0..1; area: share of the image; region: bool [H,W]; overlap: intersection over
    union with the best drawn shape of its kind, 1 = perfect."""

    kind: str
    colour: str
    box: tuple[float, float, float, float]
    area: float
    overlap: float
    region: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def name(self) -> str:
        """ "red circle", as in shapes.CLASS_NAMES."""
        return f"{self.colour} {self.kind}"


def read(image: np.ndarray, kinds: tuple[str, ...] = SIMPLE_KINDS) -> list[Found]:
    """The shapes in uint8 [H,W,3], the largest first."""
    pixels = image.astype(np.float32)
    palette = np.asarray(list(COLOURS.values()), np.float32)
    nearest = np.square(pixels[:, :, None] - palette).sum(-1).argmin(-1)
    saturated = pixels.max(-1) - pixels.min(-1) > _SATURATED
    regions, count = ndimage.label(saturated)
    found = []
    for number in range(1, count + 1):
        for region in _one_colour(regions == number, nearest):
            if _SMALLEST <= region.mean() <= _LARGEST:
                found.append(_describe(region, nearest, kinds))
    return sorted(found, key=lambda shape: -shape.area)


def _one_colour(region: np.ndarray, nearest: np.ndarray) -> list[np.ndarray]:
    """A region cut where shapes of different colours touch: seeds of one colour each, to which pixels go by nearness.

    Where two colours meet lies a seam of mixed colour, which the opening leaves out.
    """
    seeds, count = np.zeros(region.shape, int), 0
    for colour in np.unique(nearest[region]):
        labels, number = ndimage.label(ndimage.binary_opening(region & (nearest == colour)))
        for n in range(1, number + 1):
            if (labels == n).mean() >= _SMALLEST:
                count += 1
                seeds[labels == n] = count
    if count < 2:
        return [region]
    rows, columns = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    owner = np.where(region, seeds[rows, columns], 0)
    return [owner == n for n in range(1, count + 1)]


def _describe(region: np.ndarray, nearest: np.ndarray, kinds: tuple[str, ...]) -> Found:
    height, width = region.shape
    inner = ndimage.binary_erosion(region)  # colours at the edge are mixed with the background
    inside = nearest[inner if inner.any() else region]
    colour = list(COLOURS)[np.bincount(inside, minlength=len(COLOURS)).argmax()]
    overlap, kind = max((_overlap(region, kind), kind) for kind in kinds)
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    box = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    return Found(kind, colour, tuple(float(x) for x in box), float(region.mean()), overlap, region)


@lru_cache(maxsize=1)
def _templates() -> dict[str, list[tuple[float, float, float, float]]]:
    """kind -> for every turn (turn, area, centroid u, centroid v) in units of the radius."""
    axis = (np.arange(_CELLS) + 0.5) / _CELLS * 2.2 - 1.1
    u, v = np.meshgrid(axis, axis)
    made = {}
    for kind, distance in KINDS.items():
        made[kind] = []
        for turn in _TURNS:
            inside = _turned(distance, u, v, turn) <= 0
            made[kind].append((turn, inside.sum() * (2.2 / _CELLS) ** 2, u[inside].mean(), v[inside].mean()))
    return made


def _turned(distance, u: np.ndarray, v: np.ndarray, turn: float) -> np.ndarray:
    cos, sin = np.cos(turn), np.sin(turn)
    return distance(cos * u + sin * v, cos * v - sin * u)


def _overlap(region: np.ndarray, kind: str) -> float:
    """The best intersection over union of the region [H,W] with this shape, over its turns."""
    rows, columns = np.nonzero(region)
    x, y = np.meshgrid(np.arange(region.shape[1]) + 0.5, np.arange(region.shape[0]) + 0.5)
    best = 0.0
    for turn, area, centre_u, centre_v in _templates()[kind]:
        radius = np.sqrt(region.sum() / area)
        u = (x - columns.mean() - 0.5) / radius + centre_u
        v = (y - rows.mean() - 0.5) / radius + centre_v
        drawn = _turned(KINDS[kind], u, v, turn) <= 0
        best = max(best, (drawn & region).sum() / (drawn | region).sum())
    return float(best)


def main_is(image: np.ndarray, name: str) -> bool:
    """Is the largest shape this class ("red circle")?"""
    found = read(image)
    return bool(found) and found[0].name == name


def share_of_classes(images: Iterable[np.ndarray], labels: Sequence[int]) -> float:
    """Of the images the share whose largest shape is the class of their label."""
    return float(np.mean([main_is(image, CLASS_NAMES[label]) for image, label in zip(images, labels)]))


def all_there(image: np.ndarray, names: list[str]) -> bool:
    """Is every one of these shapes there, each as often as it is named?"""
    return not Counter(names) - Counter(shape.name for shape in read(image))


def in_place(image: np.ndarray, objects: list[dict], class_names: tuple[str, ...], within: float = 1 / 8) -> list[bool]:
    """For each of `objects` ({"box", "class"}): is a shape of its colour there with the centre of its box at most
    `within` (of the image's side) from that of the object's? Every shape found serves one object."""
    left, hits = read(image), []
    for item in objects:
        x, y = (item["box"][0] + item["box"][2]) / 2, (item["box"][1] + item["box"][3]) / 2
        colour = class_names[item["class"]].split()[0]
        near = [s for s in left if s.colour == colour and np.hypot(s.centre[0] - x, s.centre[1] - y) <= within]
        hits.append(bool(near))
        left = [s for s in left if not near or s is not near[0]]
    return hits


def segmentation(image: np.ndarray) -> np.ndarray:
    """The map that shapes.draw gives with a scene, from its pixels: uint8 [H,W], 0 = background, else 1 + kind."""
    classes = np.zeros(image.shape[:2], np.uint8)
    for shape in read(image):
        classes[shape.region] = 1 + list(KINDS).index(shape.kind)
    return classes
