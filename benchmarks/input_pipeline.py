"""Images per second that the input pipeline of a recipe delivers, without any model.

    python benchmarks/input_pipeline.py --config=configs/celeba_ldm4.py --batch=48 --workers=0,2 \\
        --config.data.source=folder --config.data.path=DIR

Compare with images/s of benchmarks.train_step on the same machine: the pipeline should give several times that.
Worker processes share the processor with the training step on a machine without an accelerator.
"""

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, batch="16", repeats=20)
    p.add_argument("--workers", default="0,2", help="worker processes, default 0,2; 0 is a thread")
    args, config = common.load(p, argv)
    env = common.environment()
    rows = []
    for size in args.batch:
        for workers in (int(w) for w in args.workers.split(",")):
            rows.append(measure(config, size, workers, args.repeats))
            print(common.table(rows[-1:]), flush=True)
    print(f"\n{common.table(rows)}")
    common.save(args, "input_pipeline", rows, env, config.dtype)
    return rows


def measure(config, size: int, workers: int, batches: int) -> common.Row:
    """Rate after the first two batches; `first_s` is the time to the first."""
    from ldm_jax.data.batches import batches as make_batches
    from ldm_jax.training import setup

    source, transform = setup.source(config, train=True), setup.transform(config, train=True)
    began = time.perf_counter()
    iterator = make_batches(source, transform, size, seed=0, workers=workers)
    try:
        batch = next(iterator)
        first = time.perf_counter() - began
        next(iterator)
        began = time.perf_counter()
        for _ in range(batches):
            next(iterator)
        seconds = time.perf_counter() - began
    finally:
        iterator.close()
    megabytes, rate = sum(array.nbytes for array in batch.values()) / 1e6, size * batches / seconds
    return {
        "source": source.describe(), "batch": size, "workers": workers, "first_s": first, "images_s": rate,
        "images_s_core": rate / len(os.sched_getaffinity(0)), "mb_s": megabytes * batches / seconds,
    }  # fmt: skip


if __name__ == "__main__":
    common.run(main)
