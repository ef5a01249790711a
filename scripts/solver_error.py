"""How near do few steps come to the picture that many steps make? For every sampler without noise.

    python scripts/solver_error.py pretrained/shapes_class
    python scripts/solver_error.py runs/class --num=64 --guidance=1 --steps=10,15,20,30,50

All samplers start from the same noise and solve the same equation, the probability flow (Song et al. 2021, 2011.13456),
so with enough steps they make the same picture: that of DDIM with --truth steps. The number is the root mean
square of the difference from it, over all pixels of --num samples, in grey levels (0 to 255). Each sampler has its
default spacing. Writes the table as JSON into --out.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ldm_jax
from ldm_jax import build, process, shipped
from ldm_jax.cli import options
from ldm_jax.diffusion.samplers import SAMPLERS, names_for
from ldm_jax.errors import UsageError

STEPS = "10,15,20,30,50,100"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = options.Parser(__doc__)
    parser.add_argument("workdir", type=Path, help="a run or exported folder of a class model, or without a condition")
    parser.add_argument("--num", type=int, default=64, help="samples (default 64)")
    parser.add_argument("--steps", type=options.numbers(int), default=STEPS, help=f"default {STEPS}")
    parser.add_argument("--truth", type=int, default=1000, help="steps of DDIM that count as exact (default 1000)")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale; 1 = without (default 1)")
    parser.add_argument("--labels", type=options.numbers(int), help="classes in turn (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default 64)")
    parser.add_argument("--out", type=Path, help="the table as JSON (default: WORKDIR/solver_error.json)")
    args = parser.parse_args(arguments)
    if min([args.num, args.batch, args.truth, *args.steps]) < 1:
        parser.error("--num, --batch, --truth and --steps must be 1 at least")
    return args


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of a - b, uint8 each."""
    return float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b))))


def main() -> None:
    args = parse()
    process.setup()
    with options.mistakes("solver_error.py"):
        run(args)


def run(args: argparse.Namespace) -> None:
    pipe = ldm_jax.load(args.workdir)
    if pipe.config.task != "ldm":
        raise UsageError(f"{args.workdir} holds a run of task {pipe.config.task!r}; a diffusion model is needed")
    given = dict(seed=args.seed, batch=args.batch, eta=0.0)
    if pipe.config.conditioner.kind == "class":
        labels = args.labels or range(pipe.config.conditioner.n_classes)
        given["label"] = [labels[i % len(labels)] for i in range(args.num)]
    else:
        given["num"] = args.num
    if args.guidance != 1:
        given["guidance"] = args.guidance
    can = names_for(build.schedule(pipe.config).pure_noise)
    noiseless = [name for name in can if SAMPLERS[name].takes_eta or not SAMPLERS[name].draws_noise]  # eta is 0

    def made(sampler: str, steps: int) -> np.ndarray:
        return pipe.sample(sampler=sampler, steps=steps, **given).array

    truth = made("ddim", args.truth)
    rows = {}
    print(f"{'':18}" + "".join(f"{steps:>8}" for steps in args.steps) + "  steps", flush=True)
    for sampler in noiseless:
        rows[sampler] = {steps: difference(made(sampler, steps), truth) for steps in args.steps}
        print(f"{sampler:18}" + "".join(f"{value:8.2f}" for value in rows[sampler].values()), flush=True)
    out = args.out or shipped.made_of(args.workdir) / "solver_error.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(dict(vars(args), rows=rows), indent=1, default=str) + "\n")
    print(out)


if __name__ == "__main__":
    process.restart_with_hugepages()
    main()
