"""Draws the results against PyTorch and prints them as a markdown table, for docs/measured.md.

python benchmarks/plot.py                       # benchmarks/results/*.json -> docs/benchmarks.png
python benchmarks/plot.py --results=DIR --image=FILE.png
"""

import json
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common
from ldm_jax.cli.options import Parser

TITLES = {"train": "training step", "forward": "UNet forward", "sample": "DDIM step", "decode": "decode"}
ORDER = list(TITLES)


def main(argv: list[str] | None = None) -> str:
    p = Parser(__doc__)
    p.add_argument("--results", type=Path, default=common.RESULTS)
    p.add_argument("--image", type=Path, default=common.ROOT / "docs" / "benchmarks.png")
    args = p.parse_args(argv)
    records = [json.loads(path.read_text()) for path in sorted(args.results.glob("*.json"))]
    compared = together([r for r in records if r["benchmark"].startswith("compare_torch") and r["rows"]])
    others = [r for r in records if not r["benchmark"].startswith("compare_torch")]
    text = "\n\n".join(filter(None, (section(r) for r in (*compared, *others))))
    print(text or f"no results in {args.results}")
    if compared:
        draw(compared, args.image)
        print(f"\n{args.image}")
    return text


def together(records: list[dict]) -> list[dict]:
    """One record for all that was compared of a recipe in one type on one device, training first."""
    found: dict[tuple, dict] = {}
    for record in records:
        s, env = record["settings"], record["environment"]
        key = s["config"], s["dtype"], env["device"], env["cores"]
        one = found.setdefault(key, record | {"rows": []})
        one["rows"] = sorted(one["rows"] + record["rows"], key=lambda row: (ORDER.index(row["what"]), row["batch"]))
    return list(found.values())


def heading(record: dict) -> str:
    """What was measured on what: recipe, compute type, device, versions, date."""
    s, env = record["settings"], record["environment"]
    cores = f", {env['cores']} cores" if env["backend"] == "cpu" else ""
    versions = ", ".join(f"{name} {env['versions'][name]}" for name in ("jax", "torch") if name in env["versions"])
    return f"{s['config']}, {s['dtype']}, {env['device']}{cores}, {versions}, {env['date'][:10]}"


def section(record: dict) -> str:
    """A heading and a markdown table; "" for records that have none."""
    rows = record["rows"]
    if record["benchmark"].startswith("compare_torch"):
        title, body = "against PyTorch", common.table(against_torch(rows))
    elif record["benchmark"].startswith("profile"):
        title, body = record["benchmark"].replace("_", " of "), common.table(record.get("kinds", [])[:10])
    else:
        title, body = record["benchmark"].replace("_", " "), common.table(rows)
    if record.get("fits"):
        body += f"\n\nlargest batch:\n\n{common.table(record['fits'])}"
    return f"**{title}**: {heading(record)}\n\n{body}" if rows else ""


def against_torch(rows: list[common.Row]) -> list[common.Row]:
    """For every kind of work and batch: JAX (the middle of the medians, one beside each mode), PyTorch's best mode."""
    out = []
    for what, size in dict.fromkeys((row["what"], row["batch"]) for row in rows):
        some = [row for row in rows if (row["what"], row["batch"]) == (what, size)]
        ours = [row["jax_ms"] for row in some if "jax_ms" in row]
        theirs = min((row for row in some if "torch_ms" in row), key=lambda row: row["torch_ms"], default={})
        line = {"": TITLES[what], "batch": size, "JAX ms": float(np.median(ours)) if ours else None}
        line |= {"PyTorch ms": theirs.get("torch_ms"), "its mode": theirs.get("mode", some[0]["mode"])}
        line["JAX / PyTorch throughput"] = theirs["torch_ms"] / line["JAX ms"] if ours and theirs else None
        out.append(line)
    return out


def draw(records: list[dict], path: Path) -> None:
    """Throughput of JAX relative to PyTorch's best mode, a bar for each kind of work and batch; one panel a record."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(records), figsize=(7.5 * len(records), 4), squeeze=False, layout="constrained")
    for axis, record in zip(axes[0], records):
        lines = [line for line in against_torch(record["rows"]) if line["JAX / PyTorch throughput"]][::-1]
        ratios = [line["JAX / PyTorch throughput"] for line in lines]
        names = [f"{line['']}, batch {line['batch']}\n({line['its mode']})" for line in lines]
        bars = axis.barh(names, ratios, color=["#3a7d44" if r >= 1 else "#b0643b" for r in ratios])
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1.0, color="black", linewidth=1)
        axis.set_xlim(0, 1.2 * max([*ratios, 1.0]))
        axis.set_xlabel("throughput of JAX / PyTorch in its best mode (named)")
        axis.tick_params(axis="y", labelsize=8)
        s, env = record["settings"], record["environment"]
        name = Path(s["config"]).name.replace(".py", "")
        axis.set_title(f"{name}, {s['dtype']}, {env['device']}, {env['cores']} cores", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
