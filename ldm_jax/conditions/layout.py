"""Boxes of objects: the same transformer over a sequence of class and corner tokens (paper, section 4.3.1)."""

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm_jax import images as pictures
from ldm_jax.conditions.base import Asked, Condition, Option
from ldm_jax.conditions.text import TextConditioner
from ldm_jax.data.fields import Field, Placed
from ldm_jax.data.layout import LayoutCoder, LayoutRules
from ldm_jax.data.metadata import is_box
from ldm_jax.data.sources import FilteredSource
from ldm_jax.errors import ConfigError, RequestError
from ldm_jax.files import mistaken
from ldm_jax.models.text_encoder import EMBEDDING_STD

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXAMPLE = '[{"box": [0.1, 0.2, 0.5, 0.9], "class": 3}]'


def section(n_classes: int, dim: int, depth: int, drop_prob: float = 0.0) -> dict:
    """The transformer over 30 objects x (class, top left, bottom right) and the crop's corners."""
    return dict(
        kind="layout",
        n_classes=n_classes,
        flags=("group", "occluded", "depiction", "inside"),  # what a class token also says
        crop_tokens=True,
        max_objects=30,
        min_objects=2,  # images with fewer are left out
        min_area=1e-4,  # of the image; smaller objects are left out
        vocab_size=8192,
        max_length=92,  # 3 max_objects + 2 for the crop
        dim=dim,
        depth=depth,
        embedding_std=EMBEDDING_STD,
        drop_prob=drop_prob,
    )


@dataclass(frozen=True)
class LayoutTokens(Field):
    """ "tokens" int32 [L] of the objects (data/layout.py). min_area: smaller objects, as a share of the whole image,
    are left out. shuffle: their order is random, as in training the released models."""

    coder: LayoutCoder
    min_area: float = 1e-4
    shuffle: bool = True

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        rules = LayoutRules(self.min_area, 0, len(placed.get("objects")))
        objects, placing = rules.keep(placed.get("objects")), placed.placing
        return {"tokens": self.coder.encode(objects, placing.shown, placing.flip, rng if self.shuffle else None)}


def layout_coder(c: "ConfigDict") -> LayoutCoder:
    """Objects -> tokens. ConfigError when their number is not the transformer's."""
    coder = LayoutCoder(c.n_classes, c.max_objects, c.vocab_size, c.crop_tokens, tuple(c.flags))
    if coder.length != c.max_length:
        raise ConfigError(
            f"config.conditioner.max_length={c.max_length}, but {c.max_objects} objects make {coder.length} tokens"
        )
    return coder


def requests(given: Any, coder: LayoutCoder) -> list[Asked]:
    """given: a JSON file of [{"box": [x0,y0,x1,y1] in 0..1, "class": int}, ...], a folder of them, such a list, or a
    list of such lists."""
    if isinstance(given, str | Path):
        layouts = [(path.stem, str(path), _read(path)) for path in pictures.files("layout", given, (".json",))]
    elif isinstance(given, Sequence) and given and isinstance(given[0], Sequence):
        layouts = [("", f"layout {i}", objects) for i, objects in enumerate(given)]
    else:
        layouts = [("", "the layout", given)]
    return [Asked(name, {"tokens": _tokens(objects, origin, coder)}) for name, origin, objects in layouts]


def _tokens(objects: Any, origin: str, coder: LayoutCoder) -> np.ndarray:
    try:
        return coder.encode(_checked(objects, origin))
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"layout: {origin}: {error}") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = mistaken(path) or error
        raise RequestError(f"layout={path}: a layout is a JSON list like {EXAMPLE} ({reason})") from None


def _checked(objects: Any, origin: str) -> list[dict]:
    """The objects with boxes of floats and classes of ints."""
    try:
        checked = [
            item | {"box": [_number(x) for x in item["box"]], "class": operator.index(item["class"])}
            for item in objects
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            f"layout: {origin}: a layout is a JSON list like {EXAMPLE} ({type(error).__name__}: {error})"
        ) from None
    for box in (item["box"] for item in checked):
        if not is_box(box):
            shown = str(box)[:80]
            raise RequestError(
                f"layout: {origin}: box {shown} is not [x0, y0, x1, y1] in 0..1 with x0 < x1 and y0 < y1"
            )
    return checked


def _number(x: Any) -> float:
    if isinstance(x, str | bytes | bool):
        raise TypeError(f"{str(x)[:40]!r} is not a number")
    return float(x)


class Layout(Condition):
    kind = "layout"
    example = "--layout=BOXES.json"
    options = ((Option("layout", f"boxes: a JSON file like {EXAMPLE}, or a folder of them"),),)
    has_context = True

    @property
    def coder(self) -> LayoutCoder:
        return layout_coder(self.section)

    def network(self, dtype):
        c, null = self.section, tuple(self.coder.encode([]).tolist())
        return TextConditioner(
            c.vocab_size, c.max_length, c.dim, c.depth, null_tokens=null, embedding_std=c.embedding_std, dtype=dtype
        )

    def shapes(self, frame):
        return {"tokens": ((self.section.max_length,), np.int32)}

    def fields(self, data, frame, train, tokenizer):
        return (LayoutTokens(self.coder, self.section.min_area, shuffle=train),)

    def requests(self, asked, frame, tokenizer):
        return requests(asked["layout"], self.coder)

    def source(self, images):
        c = self.section
        return FilteredSource(images, LayoutRules(c.min_area, c.min_objects, c.max_objects))
