"""Draws how good a run's samples are against the number of steps, for every sampler, and against the guidance.

    python scripts/quality_steps.py --workdir=runs/class
    python scripts/quality_steps.py --workdir=runs/class --num=2000 --samplers=ddim,unipc_3 --autoguide=runs/small

How good: the Frechet distance of features of --network between samples and training pictures; the dashed line is that
of unseen pictures. With --reconstructions both are what the first stage makes of these pictures: what it loses is in
no distance, and what the sampler does is seen. The second panel is there for models that also learnt without their
condition, or with --autoguide: the scale of classifier-free guidance at all noise levels and within --interval, and
that of autoguidance.

Writes the picture and, beside it, all numbers as JSON. Features are kept, so that what was interrupted goes on.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax import process, shipped
from ldm_jax.cli import options
from ldm_jax.errors import UsageError

STEPS, SCALES = "5,10,15,20,30,50,100,200", "1,1.5,2,3,4,6,8"
Row = dict[str, Any]


def parser() -> options.Parser:
    p = options.Parser(__doc__)
    add = p.add_argument
    add("--workdir", type=Path, required=True, help="run directory of a diffusion model, or a folder of Pipeline.save")
    add("--num", type=int, default=1000, help="samples for each point (default 1000)")
    add("--reference", type=int, default=10_000, help="training pictures to compare with (default 10,000; 0: all)")
    add("--reconstructions", action="store_true", help="compare with the first stage's reconstructions of the pictures")
    add("--steps", type=options.numbers(int), default=STEPS, help=f"default {STEPS}")
    add("--samplers", help="names, separated by commas (default: all that can sample this model)")
    add("--scales", type=options.numbers(float), default=SCALES, help=f"of guidance, default {SCALES}; 1 = without")
    add("--interval", type=float, nargs=2, default=(0.2, 2.0), metavar=("LOW", "HIGH"), help="of sigma (default 0.2 2)")
    add("--autoguide", help="run directory of a weaker model")
    add("--guided-steps", type=int, default=50, help="steps of ddim for the second panel (default 50)")
    add("--network", default="efficientnet_lite0", help="of features (default efficientnet_lite0)")
    add("--weights", default="weights", help="folder of its weights (default: weights)")
    add("--batch", type=int, default=64, help="samples at a time (default 64)")
    add("--seed", type=int, default=0, help="default 0")
    add("--out", type=Path, help="the picture (default: WORKDIR/quality_steps.png)")
    return p


def asked(args, config) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """(panel, line, place on it, options of a request) of every point. UsageError for an unknown sampler."""
    from ldm_jax import build
    from ldm_jax.diffusion.samplers import names_for

    can = names_for(build.schedule(config).pure_noise)
    chosen = args.samplers.split(",") if args.samplers else can
    if unknown := set(chosen) - set(can):
        raise UsageError(f"--samplers={','.join(unknown)}: this model is sampled by {', '.join(can)}")
    for name in chosen:
        for steps in args.steps:
            yield "steps", name, steps, dict(sampler=name, steps=steps)
    guided = {}
    if config.conditioner.drop_prob:
        guided["guidance"] = lambda scale: dict(guidance=scale)
        guided["guidance in the interval"] = lambda scale: dict(guidance=scale, guidance_interval=tuple(args.interval))
    if args.autoguide:
        guided["autoguidance"] = lambda scale: dict(autoguide=args.autoguide, autoguide_scale=scale)
    for name, given in guided.items():
        for scale in args.scales:
            more = {} if scale == 1 else given(scale)  # 1 is the same picture for all of them
            yield "scale", name, scale, dict(steps=args.guided_steps) | more


def measured(args) -> list[Row]:
    """{"panel", "line", "x", "distance"} of every point; that of unseen pictures has the panel ""."""
    import ldm_jax
    from ldm_jax import report
    from ldm_jax.evaluation import features, kept, metrics

    pipe = ldm_jax.load(args.workdir)
    config = pipe.config
    if config.task != "ldm":
        raise UsageError(f"{args.workdir} holds a run of task {config.task!r}; a diffusion model is needed")
    points = list(asked(args, config))
    extractor = features.load(args.network, args.weights, batch=args.batch)

    def features_of(pictures):
        return kept.features_of(pictures, extractor, (extractor.network.tap,))

    def compared_with(train: bool, count: int | None):
        pictures = report.data_of(config, args.workdir, train, count)
        return report.Reconstructions(pipe, pictures, args.batch) if args.reconstructions else pictures

    training = features_of(compared_with(True, args.reference or None))

    def distance(pictures) -> float:
        (value,) = metrics.distance(extractor.network, features_of(pictures), training).values()
        return value

    needs_data = config.conditioner.kind not in ("none", "class")
    data = report.data_of(config, args.workdir, False, args.num, examples=True) if needs_data else None
    unseen = distance(compared_with(False, args.num))
    rows, known = [{"panel": "", "line": "unseen pictures", "x": 0, "distance": unseen}], {}
    for panel, line, x, given in points:
        key = json.dumps(given)
        if key not in known:
            samples = report.Samples(pipe, args.num, data, batch=args.batch, seed=args.seed, **given)
            known[key] = distance(samples)
        rows.append({"panel": panel, "line": line, "x": x, "distance": known[key]})
        print(f"{line} {x:g}: {known[key]:.4g}", flush=True)
    return rows


def draw(rows: Sequence[Row], name: str, path: Path) -> None:
    """A panel for the steps and, if there are such rows, one for the scales. name: of the distance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    floor = next(row["distance"] for row in rows if not row["panel"])
    panels = [panel for panel in ("steps", "scale") if any(row["panel"] == panel for row in rows)]
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.2), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels):
        mine = [row for row in rows if row["panel"] == panel]
        for i, line in enumerate(dict.fromkeys(row["line"] for row in mine)):
            points = [(row["x"], row["distance"]) for row in mine if row["line"] == line]
            axis.plot(*zip(*points), label=line, marker="os^Dv"[i % 5], markersize=4, color=f"C{i % 10}")
        axis.axhline(floor, color="black", linestyle="--", linewidth=1, label="unseen pictures")
        ticks = sorted({row["x"] for row in mine})
        axis.set_xscale("log")
        heights = [row["distance"] for row in mine] + [floor]
        if max(heights) > 10 * min(heights):
            axis.set_yscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("steps" if panel == "steps" else "scale of the guidance")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    out = args.out or shipped.made_of(args.workdir) / "quality_steps.png"
    try:
        rows = measured(args)
    except UsageError as error:
        options.stop(f"quality_steps.py: {error}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    draw(rows, f"FD-{args.network}, {args.num} samples", out)
    print(out)


if __name__ == "__main__":
    process.restart_with_hugepages()
    process.setup()
    main()
