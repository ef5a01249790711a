"""What evaluate.py leaves: the table, evaluation.json, pictures and samples.

A report has `name`, `metrics`, `settings` and `pictures` (ldm_jax/report.py).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ldm_jax
from ldm_jax.evaluation.picture_sets import PictureSet
from ldm_jax.images import file_name, save_png


def table(reports: Sequence[Any]) -> str:
    """A row a report, a column a metric."""
    names = list(dict.fromkeys(name for report in reports for name in report.metrics))
    rows = [["", *names]]
    rows += [[r.name, *(f"{r.metrics[name]:.4g}" if name in r.metrics else "" for name in names)] for r in reports]
    lines = _aligned(rows)
    return "\n".join(lines if len(lines[0]) <= 120 else _aligned(list(zip(*rows))))  # many metrics: a row each


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    cells = ([f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths))] for row in rows)
    return ["  ".join(row) for row in cells]


def write(out: Path, command: dict[str, Any], reports: Sequence[Any], seconds: float) -> None:
    """evaluation.json and the pictures. Of several hosts the first one writes."""
    if jax.process_index():
        return
    out.mkdir(parents=True, exist_ok=True)
    versions = dict(ldm_jax=ldm_jax.__version__, jax=jax.__version__, numpy=np.__version__)
    record = dict(
        command=command, versions=versions, device=jax.devices()[0].device_kind, seconds=round(seconds, 1),
        reports=[dict(name=r.name, metrics=r.metrics, **r.settings) for r in reports],
    )  # fmt: skip
    (out / "evaluation.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    for i, report in enumerate(reports):
        for name, image in report.pictures.items():
            save_png(out / (f"{name}.png" if len(reports) == 1 else f"{i}_{name}.png"), image, {"of": report.name})


def keep(pictures: PictureSet, folder: Path) -> None:
    """The pictures as PNG files."""
    for first in range(0, len(pictures), 256):
        for i, image in enumerate(pictures.part(first, min(first + 256, len(pictures)))):
            save_png(folder / file_name(first + i, ""), image)
    print(f"{len(pictures)} samples in {folder}")
