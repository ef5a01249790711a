"""Time of a training step of any recipe, first stage or diffusion model, by batch size; and what limits it.

    python benchmarks/train_step.py --config=configs/celeba_ldm4.py --batch=1,4
    python benchmarks/train_step.py --config=configs/first_stage_vq_f4.py --batch=1 --dtype=bfloat16

The step is that of train.py with all it does: encode, noise, loss, gradient, optimiser, EMA, metrics.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, roofline, work


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, batch="1,4")
    args, config = common.load(p, argv)
    env, ceilings = common.environment(), roofline.measure_ceilings(config.dtype)
    print(ceilings)
    model = work.make_model(config)
    rows = []
    for size in args.batch:
        row = roofline.measure(work.train, model, size, repeats=args.repeats, ceilings=ceilings)
        rows.append({"what": "train"} | row)
        print(common.table([rows[-1]], roofline.COLUMNS), flush=True)
    print(f"\n{common.table(rows, roofline.COLUMNS)}")
    common.save(args, "train_step", rows, env, config.dtype, ceilings=ceilings.row())
    return rows


if __name__ == "__main__":
    common.run(main)
