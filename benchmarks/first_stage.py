"""Time of a first stage's encoder and decoder, by batch size. Takes recipes of first stages and of diffusion models.

python benchmarks/first_stage.py --config=configs/first_stage_vq_f4.py --batch=1,4
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, roofline, work


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, batch="1,4")
    args, config = common.load(p, argv)
    if config.first_stage.kind == "identity":
        p.error(f"{args.config} works on pixels: it has no first stage")
    env, ceilings = common.environment(), roofline.measure_ceilings(config.dtype)
    print(ceilings)
    model = work.make_model(config)
    rows = []
    for size in args.batch:
        for make in (work.encode, work.decode):
            row = roofline.measure(make, model, size, repeats=args.repeats, ceilings=ceilings)
            rows.append({"what": make.__name__} | row)
            print(common.table([rows[-1]], roofline.COLUMNS), flush=True)
    print(f"\n{common.table(rows, roofline.COLUMNS)}")
    common.save(args, "first_stage", rows, env, config.dtype, ceilings=ceilings.row())
    return rows


if __name__ == "__main__":
    common.run(main)
