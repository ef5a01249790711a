"""What evaluate.py leaves: the table, evaluation.json, pictures and samples.

A report has `name`, `reference`, `metrics`, `settings` and `pictures` (ldm_jax/report.py).
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ldm_jax
from ldm_jax.evaluation.kept import PART
from ldm_jax.evaluation.picture_sets import PictureSet
from ldm_jax.images import file_name, save_png


def table(reports: Sequence[Any]) -> str:
    """A row a report, a column a metric."""
    names = list(dict.fromkeys(name for report in reports for name in report.metrics))
    rows = [["", *names]]
    rows += [[r.name, *(f"{r.metrics[name]:.4g}" if name in r.metrics else "" for name in names)] for r in reports]
    lines = _aligned(rows)
    return "\n".join(lines if len(lines[0]) <= 120 else _aligned(list(zip(*rows))))  # many metrics: a row each


def references(reports: Sequence[Any]) -> str:
    """What the rows were compared with, in one line, or in one for each row."""
    names = [report.reference for report in reports]
    if len(set(names)) == 1:
        return f"compared with {names[0]}"
    return "\n".join(f"{report.name}: compared with {name}" for report, name in zip(reports, names))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    cells = ([f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths))] for row in rows)
    return ["  ".join(row) for row in cells]


def write(out: Path, command: dict[str, Any], reports: Sequence[Any], seconds: float) -> None:
    """evaluation.json and the pictures. Of several hosts the first one writes. Infinity and nan become null."""
    if jax.process_index():
        return
    out.mkdir(parents=True, exist_ok=True)
    versions = dict(ldm_jax=ldm_jax.__version__, jax=jax.__version__, numpy=np.__version__)
    record = dict(
        command=command, versions=versions, device=jax.devices()[0].device_kind, seconds=round(seconds, 1),
        reports=[dict(name=r.name, compared_with=r.reference, metrics=r.metrics, **r.settings) for r in reports],
    )  # fmt: skip
    (out / "evaluation.json").write_text(json.dumps(_finite(record), indent=1, default=str, allow_nan=False) + "\n")
    for i, report in enumerate(reports):
        for name, image in report.pictures.items():
            save_png(out / (f"{name}.png" if len(reports) == 1 else f"{i}_{name}.png"), image, {"of": report.name})


def _finite(value: Any) -> Any:
    """With None in place of numbers that JSON does not have: infinity and nan."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keep(pictures: PictureSet, out: Path, form: str, name: str) -> None:
    """The pictures as PNG files in OUT/name (form: png), or in OUT/name.npz, ADM's (npz). Numbered PNG files that an
    earlier call has left in the folder are removed."""
    parts = ((i, min(i + PART, len(pictures))) for i in range(0, len(pictures), PART))
    if form == "npz":
        out.mkdir(parents=True, exist_ok=True)
        np.savez(out / f"{name}.npz", np.stack([image for part in parts for image in pictures.part(*part)]))
        print(f"{len(pictures)} samples in {out / name}.npz")
        return
    folder, names = out / name, [file_name(i, "") for i in range(len(pictures))]
    for first, last in parts:
        for i, image in zip(range(first, last), pictures.part(first, last)):
            save_png(folder / names[i], image)
    older = [path for path in folder.glob("*.png") if re.fullmatch(r"\d{6,}", path.stem) and path.name not in names]
    for path in older:
        path.unlink()
    print(f"{len(names)} samples in {folder}" + (f"; {len(older)} of an earlier command were removed" if older else ""))
