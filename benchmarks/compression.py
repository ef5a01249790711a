"""LDM-1 to LDM-32 (tables 13 and 14, figures 6 and 7) and the inpainting models of table 6: what compression buys in
training and sampling speed.

    python benchmarks/compression.py --recipe=imagenet_compression --variants=f1,f2,f4,f8,f16,f32 --batch=1
    python benchmarks/compression.py --recipe=places_inpainting_compression --batch=1
    python benchmarks/compression.py --recipe=celeba_compression --tiny        # seconds

Ratios are to the first variant, at the same batch. Sampling is of --report DDIM steps with decoding, computed from
--steps measured ones as in benchmarks.sampling.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, roofline, sampling, work
from ldm_jax import recipes

RECIPES = ("imagenet_compression", "celeba_compression", "places_inpainting_compression")

COLUMNS = {
    "variant": "LDM", "latent": "latent", "batch": "batch", "train_ms": "train ms", "train_images_s": "train images/s",
    "train_ratio": "ratio", "step_ms": "DDIM step ms", "decode_ms": "decode ms", "sample_images_s": "sample images/s",
    "sample_ratio": "ratio ", "train_gib": "train GiB", "note": "",
}  # fmt: skip


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, config=False, repeats=5)
    p.add_argument("--recipe", choices=RECIPES, default="imagenet_compression")
    p.add_argument("--variants", type=common.words, help="default: all of the recipe")
    p.add_argument("--tiny", action="store_true", help="the shrunk variants: shows that it works, not how fast")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    p.add_argument("--steps", type=int, default=5, help="DDIM steps measured, default 5")
    p.add_argument("--report", type=int, default=100, help="DDIM steps reported, default 100")
    args = p.parse_args(argv)
    args.variants = args.variants or recipes.variants(args.recipe)
    args.config = args.recipe + "-tiny" * args.tiny
    env, ceilings = common.environment(), roofline.measure_ceilings(args.dtype)
    print(ceilings)
    rows: list[common.Row] = []
    for size in args.batch:
        some = []
        for variant in args.variants:
            some.append(measure(variant, size, args, ceilings))
            print(common.table(some[-1:], COLUMNS), flush=True)
        for row in some:
            for kind in ("train", "sample"):
                rates = [r.get(f"{kind}_images_s") for r in (row, some[0])]
                row[f"{kind}_ratio"] = rates[0] / rates[1] if all(rates) else None
        rows += some
    print(f"\n{common.table(rows, COLUMNS)}")
    common.save(args, "compression", rows, env, args.dtype, ceilings=ceilings.row())
    return rows


def measure(variant: str, size: int, args, ceilings: roofline.Ceilings) -> common.Row:
    config = recipes.load(f"{args.recipe}:{variant}{'_tiny' * args.tiny}")
    config.dtype = args.dtype
    model = work.make_model(config)
    row = {"variant": variant, "latent": "x".join(map(str, model.latent)), "batch": size}
    sampled = sampling.measure(model, size, args.steps, args.repeats, (args.report,), ceilings)
    trained = roofline.measure(work.train, model, size, repeats=args.repeats, ceilings=ceilings)
    if "note" not in trained:
        row |= {"train_ms": trained["ms"], "train_images_s": trained["images_s"], "train_gib": trained["memory_gib"]}
    if "note" not in sampled:
        rate = sampled[f"images_s_{args.report}"]
        row |= {"step_ms": sampled["ms_step"], "decode_ms": sampled["ms_decode"], "sample_images_s": rate}
    return row | {k: v for part in (trained, sampled) for k, v in part.items() if k == "note"}


if __name__ == "__main__":
    common.run(main)
