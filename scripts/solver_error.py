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
from ldm_jax import process
from ldm_jax.cli.options import Parser

NOISELESS = ("ddim", "plms", "euler", "heun", "dpm_solver_pp_2m", "unipc_2", "unipc_3")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("workdir", type=Path, help="a run or exported folder of a class model, or without a condition")
    parser.add_argument("--num", type=int, default=64, help="samples (default 64)")
    parser.add_argument("--steps", default="10,15,20,30,50,100", help="default 10,15,20,30,50,100")
    parser.add_argument("--truth", type=int, default=1000, help="steps of DDIM that count as exact (default 1000)")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale; 1 = without (default 1)")
    parser.add_argument("--labels", help="classes in turn, separated by commas (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default 64)")
    parser.add_argument("--out", type=Path, help="the table as JSON (default: WORKDIR/solver_error.json)")
    args = parser.parse_args(arguments)
    try:
        args.steps = [int(part) for part in args.steps.split(",")]
    except ValueError:
        parser.error(f"--steps={args.steps} must be numbers separated by commas")
    if min([args.num, args.batch, args.truth, *args.steps]) < 1:
        parser.error("--num, --batch, --truth and --steps must be 1 at least")
    return args


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of a - b, uint8 each."""
    return float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b))))


def main() -> None:
    args = parse()
    process.setup()
    pipe = ldm_jax.load(args.workdir)
    given = dict(seed=args.seed, batch=args.batch, eta=0.0)
    if pipe.config.conditioner.kind == "class":
        labels = [int(x) for x in args.labels.split(",")] if args.labels else range(pipe.config.conditioner.n_classes)
        given["label"] = [labels[i % len(labels)] for i in range(args.num)]
    else:
        given["num"] = args.num
    if args.guidance != 1:
        given["guidance"] = args.guidance

    def made(sampler: str, steps: int) -> np.ndarray:
        return np.stack(list(pipe.sample(sampler=sampler, steps=steps, **given)))

    truth = made("ddim", args.truth)
    rows = {}
    print(f"{'':18}" + "".join(f"{steps:>8}" for steps in args.steps) + "  steps", flush=True)
    for sampler in NOISELESS:
        rows[sampler] = {steps: difference(made(sampler, steps), truth) for steps in args.steps}
        print(f"{sampler:18}" + "".join(f"{value:8.2f}" for value in rows[sampler].values()), flush=True)
    out = args.out or args.workdir / "solver_error.json"
    out.write_text(json.dumps(dict(vars(args), rows=rows), indent=1, default=str) + "\n")
    print(out)


if __name__ == "__main__":
    process.restart_with_hugepages()
    main()
