"""Time of sampling by batch size: the UNet's steps, and decoding.

    python benchmarks/sampling.py --config=configs/celeba_ldm4.py --batch=1,4,16 --steps=10

Every step costs the same, so few are measured (--steps); the columns "images/s at N" are computed for --report steps
as 1 / (N x time of a step + time of decoding one image). "10" and "90 %" are of all --steps steps together.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, roofline, work


def main(argv: list[str] | None = None) -> list[common.Row]:
    from ldm_jax.diffusion.samplers import SAMPLERS

    p = common.parser(__doc__, batch="1,4")
    p.add_argument("--steps", type=int, default=10, help="steps measured, default 10")
    p.add_argument("--report", type=common.numbers, default=(50, 200), help="steps reported, default 50,200")
    p.add_argument("--sampler", choices=tuple(SAMPLERS), default="ddim")
    p.add_argument("--guidance", type=float, help="classifier-free guidance: twice the work")
    args, config = common.load(p, argv)
    if config.task != "ldm":
        p.error(f"{args.config} is a first stage, which has no sampler")
    env, ceilings = common.environment(), roofline.measure_ceilings(config.dtype)
    print(ceilings)
    model = work.make_model(config)
    rows = []
    for size in args.batch:
        rows.append(
            measure(model, size, args.steps, args.repeats, args.report, ceilings, args.sampler, args.guidance)
        )
        print(common.table(rows[-1:]), flush=True)
    extra = {f"images_s_{n}": f"images/s at {n}" for n in args.report}
    columns = {k: v for k, v in roofline.COLUMNS.items() if k not in ("what", "images_s")}
    print(f"\n{common.table(rows, columns | {'ms_step': 'ms/step', 'ms_decode': 'ms decode'} | extra)}")
    common.save(args, "sampling", rows, env, config.dtype, ceilings=ceilings.row())
    return rows


def measure(
    model: work.Model, size: int, steps: int, repeats: int, report: Sequence[int], ceilings: roofline.Ceilings,
    sampler: str = "ddim", guidance: float | None = None,
) -> common.Row:  # fmt: skip
    program = work.sample(model, size, steps, sampler, guidance)
    row = {"what": sampler} | roofline.measure(program, size, repeats, ceilings)
    decode = roofline.measure(work.decode(model, size), size, repeats, ceilings)
    if "note" in row or "note" in decode:
        return row | {"note": "out of memory"}
    row |= {"ms_step": row["ms"] / steps, "ms_decode": decode["ms"]}
    row.pop("images_s")
    return row | {f"images_s_{n}": size * 1e3 / (n * row["ms_step"] + row["ms_decode"]) for n in report}


if __name__ == "__main__":
    common.run(main)
