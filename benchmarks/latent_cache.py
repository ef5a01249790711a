"""Images per second of training from images and from cached latents (config.data.cache_latents), with all that it
needs: reading, decoding, copying to the device, the step.

    python benchmarks/latent_cache.py --config=configs/celeba_ldm4.py --batch=48 --dtype=bfloat16 \\
        --config.data.source=folder --config.data.path=DIR --config.data.workers=4

Weights are made up. The cache is written into a temporary folder (TMPDIR says where) before it is read, so that the
measurement finds it in the memory of the system; `cache_s` is the time that making it took, with the encoder's
compilation.
"""

import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, work


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, batch="16", repeats=20)
    args, config = common.load(p, argv)
    env, rows = common.environment(), []
    for size in args.batch:
        config.batch_size = size
        with tempfile.TemporaryDirectory() as folder:
            for cache in ("", folder):
                rows.append(measure(config, cache, args.repeats))
                print(common.table(rows[-1:]), flush=True)
    print(f"\n{common.table(rows)}")
    common.save(args, "latent_cache", rows, env, config.dtype)
    return rows


def measure(config, cache: str, steps: int) -> common.Row:
    """Training steps one after another, as the loop makes them, after the first two; cache: its folder, or ""."""
    import jax

    from ldm_jax.training import setup, sharding

    config.data.cache_latents = cache
    mesh, model = setup.mesh(config), work.make_model(config)
    state, frozen = jax.device_put((model.state, model.frozen), sharding.replicated(mesh))
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        loaders = setup.loaders(config, workdir, model.frozen)
        made = time.perf_counter() - began
        batches = loaders.train(0)
        try:
            batch = sharding.put(next(batches), mesh)
            step = jax.jit(model.task.step, donate_argnums=0).lower(state, frozen, batch).compile()
            for i in range(steps + 2):
                state, metrics = step(state, frozen, batch)
                if i == 1:
                    jax.block_until_ready(metrics)
                    began = time.perf_counter()
                batch = sharding.put(next(batches), mesh)
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - began
        finally:
            batches.close()
    megabytes = sum(array.nbytes for array in batch.values()) / 1e6
    return {
        "reads": "latents" if cache else "images", "batch": config.batch_size, "step_s": seconds / steps,
        "images_s": config.batch_size * steps / seconds, "batch_mb": megabytes, "cache_s": made if cache else None,
    }  # fmt: skip


if __name__ == "__main__":
    common.run(main)
