"""A run that is training, as a page shows it: how far it is, curves as SVG, its newest pictures. No Gradio here."""

import html
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm_jax import rundir
from ldm_jax.errors import Missing
from ldm_jax.progress import duration
from ldm_jax.training.logging import VALIDATION

POINTS = 300  # of a curve that are drawn, at most
WIDTH, HEIGHT = 420, 190  # of a panel
LEFT, BOTTOM, TOP, RIGHT = 52, 24, 24, 10  # around its field
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
FIRST = ("loss",)  # panels that come first
Curve = list[tuple[float, float]]


def check(run: str | Path) -> None:
    """Missing where there is no directory; one that is empty may become a run."""
    if not Path(run).is_dir():
        raise Missing(f"run={run} is no directory: give the --workdir of train.py")


def names_of(runs: Sequence[str]) -> dict[str, str]:
    """{run: its directory's name, for visitors}; where several have one name, the paths as they were given."""
    names = {run: Path(run).absolute().name for run in runs}
    found = list(names.values())
    return {run: name if name and found.count(name) == 1 else run for run, name in names.items()}


def metrics_of(run: str | Path) -> Path:
    return Path(run) / "metrics.jsonl"


def read(run: str | Path) -> list[dict]:
    """The lines of metrics.jsonl; those that are not whole, as the last one may be, are left out."""
    try:
        lines = metrics_of(run).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            found.append(values)
    return found


def told(run: str | Path, lines: Sequence[Mapping], now: float | None = None) -> str:
    """How far the run is, in a few words."""
    if not lines:
        return "no numbers yet"
    last = lines[-1]
    try:
        steps = f" of {rundir.config_of(run).steps}"
    except (ValueError, AttributeError):
        steps = ""
    ago = (time.time() if now is None else now) - last.get("time", math.nan)
    when = f", {duration(ago)} ago" if math.isfinite(ago) else ""
    return f"step {last['step']}{steps}{when}"


def curves(lines: Sequence[Mapping]) -> dict[str, dict[str, Curve]]:
    """{panel: {name: [(step, value), ...]}}: a metric, and the same of validation beside it. Thinned by means."""
    names = dict.fromkeys(name for line in lines for name in line if name not in ("step", "time"))
    panels: dict[str, dict[str, Curve]] = {}
    for name in sorted(names, key=lambda n: (n.removeprefix(VALIDATION) not in FIRST, n.removeprefix(VALIDATION))):
        numbers = ((line["step"], line.get(name)) for line in lines)
        points = [(float(s), float(v)) for s, v in numbers if isinstance(v, int | float) and math.isfinite(v)]
        if points:
            panels.setdefault(name.removeprefix(VALIDATION), {})[name] = _thinned(points)
    return panels


def _thinned(points: Curve) -> Curve:
    size = math.ceil(len(points) / POINTS)
    parts = (points[i : i + size] for i in range(0, len(points), size))
    return [tuple(sum(column) / len(part) for column in zip(*part)) for part in parts]


def drawn(panels: Mapping[str, Mapping[str, Curve]]) -> str:
    """The panels as one piece of HTML, an SVG each."""
    svgs = "".join(_svg(title, named) for title, named in panels.items())
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{svgs}</div>'


def _svg(title: str, named: Mapping[str, Curve]) -> str:
    points = [point for curve in named.values() for point in curve]
    (x0, x1), (y0, y1) = (_range([point[axis] for point in points]) for axis in (0, 1))

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (point[0] - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    parts, along = [], LEFT
    for (name, curve), colour in zip(named.items(), COLOURS):
        line = " ".join(place(point) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(curve) < 30:
            dots = (place(point).split(",") for point in curve)
            parts += [f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>' for x, y in dots]
        parts.append(f'<text x="{along}" y="14" fill="{colour}">{html.escape(name)} {curve[-1][1]:.4g}</text>')
        along += 9 * len(name) + 60
    field = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - BOTTOM - TOP}"'
    marks = [(LEFT - 4, HEIGHT - BOTTOM, y0, "end"), (LEFT - 4, TOP + 8, y1, "end"),
             (LEFT, HEIGHT - 8, x0, "start"), (WIDTH - RIGHT, HEIGHT - 8, x1, "end")]  # fmt: skip
    texts = "".join(f'<text x="{x}" y="{y}" text-anchor="{at}">{v:.4g}</text>' for x, y, v, at in marks)
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}" '
        'font-size="11" font-family="sans-serif" fill="currentColor">'
        f'<rect {field} fill="none" stroke="currentColor" opacity="0.3"/>{texts}{"".join(parts)}</svg>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def pictures(run: str | Path) -> list[tuple[Path, str]]:
    """(file, caption) of the newest picture of each name in pictures/."""
    newest: dict[str, tuple[int, Path]] = {}
    for path in (Path(run) / "pictures").glob("*.png"):
        name, step = re.fullmatch(r"(.*?)(?:_(\d+))?\.png", path.name).groups()
        if not name.startswith(".") and not path.name.endswith(".tmp.png"):
            newest[name] = max(newest.get(name, (-1, path)), (int(step or 0), path))
    return [(path, f"{name}, step {step}") for name, (step, path) in sorted(newest.items())]
