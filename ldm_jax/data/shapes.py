"""Scenes of coloured shapes, drawn with numpy from (seed, index): a data set that needs no download.

A scene has one large main shape and up to three smaller shapes on a muted background. `simple` scenes are for models
that train in minutes: they have four kinds of shapes, larger and upright, at most one smaller shape, and a plain or
shaded background. Each scene has what the conditions need: label, caption, boxes, segmentation, vectors.

A shape is a signed distance function d(u, v), negative inside. u and v are in units of the circumscribed circle's
radius, v points down. A pixel's coverage is clip(1/2 - d) with d in pixels, so that edges are soft without
supersampling.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ldm_jax.errors import ConfigError

COLOURS = {
    "red": (215, 30, 40),
    "orange": (250, 130, 15),
    "yellow": (255, 230, 40),
    "green": (35, 150, 55),
    "cyan": (50, 215, 230),
    "blue": (30, 70, 215),
    "purple": (125, 35, 170),
    "pink": (255, 140, 200),
}
BACKGROUNDS = {
    "grey": (140, 140, 140),
    "beige": (205, 190, 165),
    "brown": (120, 95, 80),
    "olive": (125, 125, 90),
    "slate": (95, 110, 128),
    "mauve": (160, 135, 155),
    "dark": (62, 62, 68),
    "pale": (222, 222, 218),
}
PATTERNS = ("plain", "shaded", "striped", "checkered")
SIMPLE_KINDS = ("circle", "square", "triangle", "cross")


def _box(u, v, half_u, half_v):
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _circle(u, v):
    return np.hypot(u, v) - 1.0


def _square(u, v):
    return _box(u, v, 0.7071, 0.7071)


def _triangle(u, v):
    return np.maximum(v, 0.8660 * np.abs(u) - 0.5 * v) - 0.5


def _star(u, v):
    """Five points. The plane is folded onto half of one; its edge is the line from the tip to the inner corner."""
    angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(u, v)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    inner_x, inner_y = 0.42 * np.cos(np.pi / 5), 0.42 * np.sin(np.pi / 5)
    normal_x, normal_y = inner_y, 1.0 - inner_x
    return ((along - 1.0) * normal_x + across * normal_y) / np.hypot(normal_x, normal_y)


def _ring(u, v):
    return np.abs(np.hypot(u, v) - 0.76) - 0.24


def _cross(u, v):
    return np.minimum(_box(u, v, 0.96, 0.28), _box(u, v, 0.28, 0.96))


def _heart(u, v):
    """A square that stands on a corner, with half a circle on each upper side."""
    u, v, half = np.abs(u), v - 0.04, 0.68
    square = (u + np.abs(v) - half) * 0.7071
    return np.minimum(square, np.hypot(u - half / 2, v + half / 2) - half * 0.7071)


def _moon(u, v):
    return np.maximum(np.hypot(u, v) - 1.0, 0.86 - np.hypot(u - 0.48, v))


KINDS = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
}


@dataclass(frozen=True)
class Rules:
    """counts: probabilities of 1, 2, ... shapes. main, others: ranges of the radii of the main shape and the others, as
    a share of the image's side. turn: largest rotation to either side, in radians."""

    counts: tuple[float, ...]
    main: tuple[float, float]
    others: tuple[float, float]
    kinds: tuple[str, ...]
    turn: float
    patterns: tuple[str, ...]


RULES = Rules((0.25, 0.3, 0.25, 0.2), (0.2, 0.35), (0.08, 0.15), tuple(KINDS), 0.4, PATTERNS)
SIMPLE_RULES = Rules((0.75, 0.25), (0.28, 0.4), (0.15, 0.2), SIMPLE_KINDS, 0.0, PATTERNS[:2])
# A class is a kind and a colour. Segmentation maps have only kinds: 0 = background, else 1 + kind.
CLASS_NAMES = tuple(f"{colour} {kind}" for kind in KINDS for colour in COLOURS)
# The classes of simple scenes, a row of all colours for each kind.
SIMPLE_CLASSES = tuple(CLASS_NAMES.index(f"{colour} {kind}") for kind in SIMPLE_KINDS for colour in COLOURS)
SEGMENTATION_NAMES = ("background", *KINDS)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in 0..1: x [1,size], y [size,1]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[None, :], centres[:, None]


def _waves(position: np.ndarray, count: float, size: int) -> np.ndarray:
    """A square wave between 0 and 1 with `count` periods per unit. Its edges are one pixel wide."""
    distance = np.abs(position * count % 1.0 - 0.5) - 0.25
    return np.clip(0.5 - distance * (size / count), 0.0, 1.0)


def _background(rng: np.random.Generator, size: int, patterns: tuple[str, ...]) -> tuple[np.ndarray, str]:
    """Returns image [size,size,3] float32 in 0..255 and its words ("striped grey")."""
    name = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    pattern = patterns[rng.integers(len(patterns))]
    first = np.asarray(BACKGROUNDS[name], np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    second = first + np.float32(rng.choice([-1, 1]) * rng.uniform(22, 34))
    angle, count, phase = rng.uniform(0, np.pi), rng.uniform(3, 8), rng.uniform()
    x, y = _grid(size)
    along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y + np.float32(phase)
    if pattern == "plain":
        mix = np.zeros((size, size), np.float32)
    elif pattern == "shaded":
        mix = (along - along.min()) / (along.max() - along.min())
    elif pattern == "striped":
        mix = _waves(along, count, size)
    else:
        across = np.float32(-np.sin(angle)) * x + np.float32(np.cos(angle)) * y + np.float32(phase)
        a, b = _waves(along, count, size), _waves(across, count, size)
        mix = a + b - 2 * a * b
    return first + mix[..., None] * (second - first), f"{pattern} {name}"


def _place(rng: np.random.Generator, rules: Rules) -> list[dict]:
    """Kind, colour, centre, radius and turn of each shape, the main shape first. All are inside the image. Two of them
    overlap by at most a quarter of the sum of their radii, so that no shape hides another."""
    wanted = 1 + int(rng.choice(len(rules.counts), p=rules.counts))
    placed = []
    for k in range(wanted):
        radius = rng.uniform(*(rules.main if k == 0 else rules.others))
        for _ in range(20):
            centre = rng.uniform(radius, 1 - radius, 2)
            if all(np.hypot(*(centre - other["centre"])) > 0.75 * (radius + other["radius"]) for other in placed):
                kind, colour = rules.kinds[rng.integers(len(rules.kinds))], int(rng.integers(len(COLOURS)))
                placed.append(
                    {
                        "kind": list(KINDS).index(kind),
                        "colour": colour,
                        "centre": centre,
                        "radius": radius,
                        "turn": rng.uniform(-rules.turn, rules.turn),
                    }
                )
                break
    return placed


def _paint(image: np.ndarray, segmentation: np.ndarray, shape: dict, colour: np.ndarray) -> list[float]:
    """Draws one shape into the image and the map. Returns its box [x0,y0,x1,y1] in 0..1, including hidden parts."""
    size = len(image)
    (cx, cy), radius = shape["centre"], shape["radius"]
    left, top = max(int((cx - radius) * size) - 1, 0), max(int((cy - radius) * size) - 1, 0)
    right, bottom = int((cx + radius) * size) + 2, int((cy + radius) * size) + 2
    x, y = _grid(size)
    x = (x[:, left:right] - np.float32(cx)) / np.float32(radius)
    y = (y[top:bottom] - np.float32(cy)) / np.float32(radius)
    cos, sin = np.float32(np.cos(shape["turn"])), np.float32(np.sin(shape["turn"]))
    distance = list(KINDS.values())[shape["kind"]](cos * x + sin * y, cos * y - sin * x)
    coverage = np.clip(0.5 - distance * np.float32(radius * size), 0.0, 1.0)
    window = image[top:bottom, left:right]
    window += coverage[..., None] * (colour - window)
    inside = coverage >= 0.5
    segmentation[top:bottom, left:right][inside] = 1 + shape["kind"]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return [
        float((left + columns[0]) / size),
        float((top + rows[0]) / size),
        float((left + columns[-1] + 1) / size),
        float((top + rows[-1] + 1) / size),
    ]


def _caption(placed: list[dict], background: str) -> str:
    kinds, colours = list(KINDS), list(COLOURS)
    words = [
        f"a {'large' if k == 0 else 'small'} {colours[shape['colour']]} {kinds[shape['kind']]}"
        for k, shape in enumerate(placed)
    ]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{listed} on a {background} background"


def draw(seed: int, index: int, size: int, simple: bool = False) -> dict:
    """Draws scene `index` of `seed`. The same arguments give the same bytes. Another size gives the same scene at
    another resolution.

    Returns "image" uint8 [size,size,3]; "label" int, the main shape's class (CLASS_NAMES); "text"; "objects",
    a list of {"box": [x0,y0,x1,y1] in 0..1, "class": int}, main shape first; "segmentation" uint8 [size,size]
    (SEGMENTATION_NAMES); "vectors" float32 [1,64], the one-hot label, in place of CLIP vectors; "name".
    ConfigError unless size is 32..512.
    """
    if not 32 <= size <= 512:
        raise ConfigError(f"shapes are drawn at 32 to 512 pixels, not {size}")
    rng = np.random.default_rng([seed, index])
    rules = SIMPLE_RULES if simple else RULES
    image, background = _background(rng, size, rules.patterns)
    placed = _place(rng, rules)
    tints = rng.uniform(-12, 12, (len(placed), 3)).astype(np.float32)
    segmentation = np.zeros((size, size), np.uint8)
    colours = np.asarray(list(COLOURS.values()), np.float32)
    boxes = {}
    for k in rng.permutation(len(placed)):
        boxes[k] = _paint(image, segmentation, placed[k], colours[placed[k]["colour"]] + tints[k])
    classes = [shape["kind"] * len(COLOURS) + shape["colour"] for shape in placed]
    return {
        "image": np.clip(np.rint(image), 0, 255).astype(np.uint8),
        "label": classes[0],
        "text": _caption(placed, background),
        "objects": [{"box": boxes[k], "class": classes[k]} for k in range(len(placed))],
        "segmentation": segmentation,
        "vectors": np.eye(len(CLASS_NAMES), dtype=np.float32)[classes[:1]],
        "name": f"shapes-{seed}-{index}",
    }
