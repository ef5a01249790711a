"""Memory of a training step by batch size, with and without recomputed activations, as the compiler plans it.

    python benchmarks/memory.py --config=configs/celeba_ldm4.py --batch=4,16
    python benchmarks/memory.py --config=configs/text2img_ldm8.py --dtype=bfloat16 --topology=h200

Nothing is allocated and no step runs: it is compiled for shapes alone. The plan is made for JAX's own device or for
a GPU or TPU that is not there (--topology, benchmarks/topology.py says what it needs); other devices choose other
temporaries, and on CPUs bfloat16 is widened and recomputation is undone. Memory grows by the same amount with every
image, so the largest batch that --limits (GiB) allow is computed from the two largest of --batch; --reserve of each
limit is left to driver and runtime. On a GPU JAX takes three quarters of the memory unless
XLA_CLIENT_MEM_FRACTION=0.94 is set.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, topology, work
from ldm_jax import build, process

COLUMNS = {
    "batch": "batch", "remat": "recompute", "state_gib": "state GiB", "temporary_gib": "temporary GiB",
    "peak_gib": "peak GiB", "compile_s": "compile s", "note": "",
}  # fmt: skip


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, batch="1,4")
    p.add_argument("--topology", default="", help="plan for: a100, h100, h200, v4:2x2x1, v5e:1x1, v6e:1x1 ...")
    p.add_argument("--limits", type=common.numbers, default=(24, 80, 141), help="GiB, default 24,80,141")
    p.add_argument("--recompute", type=common.words, default=("no", "yes"), help="activations; default no,yes")
    p.add_argument("--reserve", type=float, default=0.06, help="share of a limit that is not ours, default 0.06")
    args, config = common.load(p, argv)
    if not set(args.recompute) <= {"no", "yes"}:
        p.error(f"--recompute={','.join(args.recompute)} is not of no,yes")
    if len(args.batch) < 2:
        p.error(f"--batch={args.batch[0]}: two sizes at least, to tell what one more image costs")
    env = common.environment()
    env["planned_for"] = args.topology or env["device"]
    name = f"memory{'_' + args.topology.replace(':', '-') if args.topology else ''}"
    rows, fits = [], []
    choices = [word == "yes" for word in args.recompute] if config.task == "ldm" else [None]
    with topology.device(args.topology) if args.topology else nullcontext(jax.devices()[0]) as device:
        for remat in choices:
            for size in args.batch:
                rows.append(measure(config, size, remat, device))
                print(common.table(rows[-1:], COLUMNS), flush=True)
            some = [row for row in rows if row["remat"] == remat and "peak_gib" in row]
            if len(some) > 1:
                fits.append({"remat": remat} | largest(some[-2:], args.limits, args.reserve))
            common.save(args, name, rows, env, config.dtype, fits=fits)  # what there is so far
    print(f"\n{common.table(rows, COLUMNS)}\n\nlargest batch:\n{common.table(fits)}")
    return rows


def measure(config, size: int, remat: bool | None, device: jax.Device) -> common.Row:
    """Plans one step of `size` images; donated arguments are counted once."""
    if remat is not None:
        config[config.network.kind].remat = remat
    config.batch_size = size * config.optim.accumulate
    task, state, frozen = work.abstract(config)
    where = jax.sharding.SingleDeviceSharding(device)
    args = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
        (state, frozen, build.batch_shapes(config, config.batch_size)),
    )
    row = {"batch": size, "remat": remat}
    lowered = jax.jit(task.step, donate_argnums=0).lower(*args)
    try:
        seconds, compiled = common.timed(lowered.compile)
    except RuntimeError as error:
        if not common.out_of_memory(error):
            raise
        return row | {"note": "more than this device has"}
    planned = process.planned_gib(compiled)
    if planned is None:
        return row | {"note": "the compiler does not say"}
    held, temporary = planned
    sizes = {"state_gib": held, "temporary_gib": temporary, "peak_gib": held + temporary}
    return row | sizes | {"compile_s": seconds}


def largest(rows: list[common.Row], limits: tuple[int, ...], reserve: float) -> common.Row:
    """{"24 GiB": images, ...}; 0 where not even one fits. Without the images where batches are too small to tell."""
    (b0, b1), (m0, m1) = ([row[key] for row in rows] for key in ("batch", "peak_gib"))
    each = (m1 - m0) / (b1 - b0)
    if each <= 0:
        return {"GiB per image": each, "note": "choose larger batches"}
    fixed = m0 - b0 * each
    fit = {f"{limit} GiB": max(int(np.floor(((1 - reserve) * limit - fixed) / each)), 0) for limit in limits}
    return {"GiB per image": each} | fit


if __name__ == "__main__":
    common.run(main)
