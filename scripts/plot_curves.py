"""Draws metrics of a run's metrics.jsonl into one picture.

    python scripts/plot_curves.py runs/ldm loss,val_loss grad_norm --out curves.png

Each argument after the run directory is one panel: metric names joined by commas. Without any, it lists the
metrics that the run has.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax.cli.options import Parser


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("panels", nargs="*", help="metric names, joined by commas where they share a panel")
    parser.add_argument("--out", type=Path, help="default: WORKDIR/curves.png")
    args = parser.parse_args()
    path = args.workdir / "metrics.jsonl"
    if not path.is_file():
        sys.exit(f"{path} does not exist; is {args.workdir} a run directory?")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = sorted({name for line in lines for name in line} - {"step", "time"})
    wanted = [panel.split(",") for panel in args.panels]
    unknown = {name for panel in wanted for name in panel} - set(names)
    if not wanted or unknown:
        sys.exit(f"no metric {', '.join(sorted(unknown)) or 'named'}; the run has: {', '.join(names)}")
    figure, axes = plt.subplots(1, len(wanted), figsize=(4 * len(wanted), 3), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], wanted):
        for name in panel:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points), label=name, marker="." if len(points) < 30 else None)
        axis.set_xlabel("step")
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    out = args.out or args.workdir / "curves.png"
    figure.savefig(out, dpi=100)
    print(out)


if __name__ == "__main__":
    main()
