"""Does this accelerator give the CPU's numbers? The first thing to run on a new machine.

    python benchmarks/accelerator.py --config=celeba_ldm4 --batch=2
    python benchmarks/accelerator.py --config=first_stage_kl_f4 --batch=2 --config.loss.disc_start=0

One training step with made-up weights and noise: on the CPU in float32, then on the accelerator in float32 with exact
products, in float32 with the device's own (TF32 on GPUs, bfloat16 on TPUs), and in bfloat16. The columns "apart" are
relative differences from the CPU's loss and norm of the gradient; the JSON has all metrics of the step. Exits with 1 if
one of the exact step is above 1e-3, or if a number is not finite.
"""

import os
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, work

LARGEST = 1e-3
COMPARED = ("loss", "grad_norm")
# name -> (compute type, precision of float32 products)
KINDS = {"exact": ("float32", "highest"), "default": ("float32", None), "bfloat16": ("bfloat16", None)}


def main(argv: list[str] | None = None) -> list[common.Row]:
    import jax

    p = common.parser(__doc__, batch="2", repeats=1)
    p.add_argument("--kinds", type=common.words, default=tuple(KINDS), help=f"default {','.join(KINDS)}")
    args, config = common.load(p, argv)
    if unknown := set(args.kinds) - set(KINDS):
        p.error(f"--kinds={','.join(unknown)}: there are {', '.join(KINDS)}")
    env, size, rows = common.environment(), args.batch[0], []
    device = jax.devices()[0]
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        sys.exit(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} leaves out the CPU, which is compared with: add ,cpu"
        )
    if device.platform == "cpu":
        print("note: JAX finds only the CPU, which is compared with itself")
    expected = metrics_on(cpu, config, size, "exact")[0]
    print(f"CPU: {', '.join(f'{name} {value:.6g}' for name, value in expected.items())}", flush=True)
    for kind in args.kinds:
        found, row = metrics_on(device, config, size, kind)
        for name in COMPARED:
            row |= {name: found[name], f"{name} apart": abs(found[name] / expected[name] - 1)}
        rows.append({"step": kind, "batch": size} | row | {"metrics": found})
        common.save(args, "accelerator", rows, env, config.dtype, cpu=expected)
    print(f"\n{common.table([{k: v for k, v in row.items() if k != 'metrics'} for row in rows])}")
    if any(row["step"] == "exact" and not row[f"{name} apart"] <= LARGEST for row in rows for name in COMPARED):
        sys.exit(f"{args.config}: the exact step differs from the CPU's by more than {LARGEST:g}")
    if not all(np.isfinite(row[name]) for row in rows for name in COMPARED):
        sys.exit(f"{args.config}: a metric is not finite")
    return rows


def metrics_on(device, config, size: int, kind: str) -> tuple[dict[str, float], common.Row]:
    """(metrics of the first training step on a device, seconds of compilation and memory in GiB)."""
    import jax

    from ldm_jax.models import kernels

    config = config.copy_and_resolve_references()
    config.dtype, precision = KINDS[kind]
    with jax.default_device(device), kernels.use(device.platform):
        program = work.train(work.make_model(config), size).compile(precision)
        state, metrics = program()
        found = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        row = {
            "compile s": program.compile_s,
            "GiB planned": program.memory_gib,
            "GiB held so far": common.peak_gib(device),
        }
    del program, state
    return found, row


if __name__ == "__main__":
    common.run(main)
