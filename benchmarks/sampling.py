"""Time of sampling by batch size: the UNet's steps, and decoding.

    python benchmarks/sampling.py --config=configs/celeba_ldm4.py --batch=1,4,16 --steps=10

Every step costs the same, so few are measured (--steps); the columns "images/s at N" are computed for --report steps
as batch / (N x time of a step + time of decoding the batch), "latents/s" without decoding. "10" and "90 %" are of
all --steps steps together.

With --own-cost it is measured instead what the samplers themselves cost: the time of --steps steps without that of as
many bare calls of the network in one program, both in turns, the shortest of --repeats each:

    python benchmarks/sampling.py --config=celeba_ldm4:tiny --own-cost --sampler=ddim,heun --steps=20 --repeats=50
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, roofline, work


def main(argv: list[str] | None = None) -> list[common.Row]:
    from ldm_jax.diffusion.samplers import SAMPLERS

    p = common.parser(__doc__, batch="1,4")
    p.add_argument("--steps", type=int, default=10, help="steps measured, default 10")
    p.add_argument("--report", type=common.numbers, default=(50, 200), help="steps reported, default 50,200")
    p.add_argument("--sampler", type=common.words, default=("ddim",), help="names, separated by commas; default ddim")
    p.add_argument("--own-cost", action="store_true", help="what samplers cost besides the network's calls")
    p.add_argument("--guidance", type=float, help="classifier-free guidance: twice the work")
    args, config = common.load(p, argv)
    if config.task != "ldm":
        p.error(f"{args.config} is a first stage, which has no sampler")
    if unknown := set(args.sampler) - set(SAMPLERS):
        p.error(f"--sampler={','.join(unknown)} is not one of {', '.join(SAMPLERS)}")
    if args.own_cost:
        return own_costs(args, config)
    env, ceilings = common.environment(), roofline.measure_ceilings(config.dtype)
    print(ceilings)
    model = work.make_model(config)
    rows = []
    for size, sampler in product(args.batch, args.sampler):
        rows.append(measure(model, size, args.steps, args.repeats, args.report, ceilings, sampler, args.guidance))
        print(common.table(rows[-1:]), flush=True)
    extra = {"ms_step": "ms/step", "steps_s": "steps/s", "ms_decode": "ms decode"}
    for n in args.report:
        extra |= {f"images_s_{n}": f"images/s at {n}", f"latents_s_{n}": f"latents/s at {n}"}
    columns = {k: v for k, v in roofline.COLUMNS.items() if k not in ("what", "images_s")}
    print(f"\n{common.table(rows, columns | extra)}")
    common.save(args, "sampling", rows, env, config.dtype, ceilings=ceilings.row())
    return rows


def measure(
    model: work.Model, size: int, steps: int, repeats: int, report: Sequence[int], ceilings: roofline.Ceilings,
    sampler: str = "ddim", guidance: float | None = None,
) -> common.Row:  # fmt: skip
    how = dict(repeats=repeats, ceilings=ceilings)
    row = {"what": sampler} | roofline.measure(work.sample, model, size, steps, sampler, guidance, **how)
    decode = roofline.measure(work.decode, model, size, **how)
    if "note" in row or "note" in decode:
        return row | {"note": "out of memory"}
    ms_step = row["ms"] / steps
    row |= {"ms_step": ms_step, "steps_s": 1e3 / ms_step, "ms_decode": decode["ms"]}
    row.pop("images_s")
    for n in report:
        row[f"images_s_{n}"] = size * 1e3 / (n * ms_step + decode["ms"])
        row[f"latents_s_{n}"] = size * 1e3 / (n * ms_step)
    return row


def own_costs(args: argparse.Namespace, config) -> list[common.Row]:
    env, model, rows = common.environment(), work.make_model(config), []
    for size, sampler in product(args.batch, args.sampler):
        rows.append(own_cost(model, size, args.steps, args.repeats, sampler, args.guidance))
        print(common.table(rows[-1:]), flush=True)
    print(f"\n{common.table(rows)}")
    common.save(args, "sampling-own-cost", rows, env, config.dtype)
    return rows


def own_cost(
    model: work.Model, size: int, steps: int, repeats: int, sampler: str, guidance: float | None = None
) -> common.Row:
    """Milliseconds of `steps` steps, of as many calls of the network as they make, and what is left for the sampler."""
    calls = work.evaluations(model, steps, sampler)
    programs = {
        "whole": work.sample(model, size, steps, sampler, guidance),
        "calls": work.calls(model, size * (1 if guidance is None else 2), calls),
    }
    runs = {name: program.compile() for name, program in programs.items()}
    ms = {name: 1e3 * min(times) for name, times in common.alternate(runs, repeats).items()}
    own = ms["whole"] - ms["calls"]
    return {
        "sampler": sampler, "batch": size, "steps": steps, "calls": calls, "ms": ms["whole"],
        "ms of calls": ms["calls"], "ms own": own, "own share": own / ms["whole"],
    }  # fmt: skip


if __name__ == "__main__":
    common.run(main)
