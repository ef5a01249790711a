"""Side by side with PyTorch: the same networks, the same weights, the same machine, in turns.

    pip install -r requirements-bench.txt
    python benchmarks/compare_torch.py --config=configs/celeba_ldm4.py --what=forward,train,sample,decode --batch=1,4

Outputs are compared first (float32: relative error at most 1e-3, else it stops). Then both sides are called in turns,
in every mode that a PyTorch user would try (--modes). What is compared:

    forward   one call of the UNet
    train     one training step: encode, noise, loss, gradient, AdamW, EMA
    sample    DDIM, --steps steps, per step
    decode    latents to images

Last, each side's best batch and mode against the other's. Above 1 in "torch / jax": JAX is faster.
"""

import gc
import os
import sys
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, work
from ldm_jax.training import runtime

WHAT = ("forward", "train", "sample", "decode")
LIMITS = {"float32": 1e-3, "bfloat16": 0.1}
COLUMNS = {
    "what": "what", "batch": "batch", "mode": "PyTorch mode", "error": "rel. error", "jax_ms": "JAX ms",
    "torch_ms": "PyTorch ms", "ratio": "torch / jax", "jax_rate": "JAX images/s", "torch_rate": "PyTorch images/s",
    "jax_compile_s": "JAX compile s", "torch_first_s": "PyTorch first call s",
}  # fmt: skip


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, batch="1,4")
    p.add_argument("--what", type=common.words, default=WHAT, help=f"default {','.join(WHAT)}")
    p.add_argument("--steps", type=int, default=5, help="DDIM steps measured, default 5")
    p.add_argument("--modes", type=common.words, help="default: all that make sense on this device")
    args, config = common.load(p, argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is for both
    try:
        import torch

        from benchmarks import torch_side
    except ImportError as error:
        sys.exit(f"{error}\n\nPyTorch's side: pip install -r requirements-bench.txt")
    args.modes = args.modes or torch_side.USUAL[torch_side.DEVICE]
    unknown = [m for m in args.modes if m not in torch_side.MODES] + [w for w in args.what if w not in WHAT]
    if unknown:
        p.error(f"{unknown[0]!r} is none of {', '.join((*torch_side.MODES, *WHAT))}")
    env = common.environment() | {"torch_threads": torch.get_num_threads(), "torch_device": torch_side.DEVICE}
    if (env["backend"] == "cpu") != (torch_side.DEVICE == "cpu"):
        sys.exit(f"JAX runs on {env['backend']} and PyTorch on {torch_side.DEVICE}: nothing to compare")
    model = work.make_model(config)
    if not model.is_ldm:
        args.what = tuple(w for w in args.what if w == "decode")
    rows: list[common.Row] = []
    try:
        folder = torch_side.temporary_folder(model, unet=args.what != ("decode",))
    except ValueError as error:
        sys.exit(f"{args.config} has no counterpart in PyTorch: {error}")
    with folder:
        for what in args.what:
            for size in args.batch:
                rows += measure(args, model, Path(folder.name), what, size)
    summary = best(rows)
    print(f"\n{common.table(rows, COLUMNS)}\n\nbest of each side:\n{common.table(summary)}")
    name = "-".join(("compare_torch", *(args.what if args.what != WHAT else ())))
    common.save(args, name, rows, env, config.dtype, best=summary)
    return rows


def program(model: work.Model, what: str, size: int, steps: int) -> work.Program:
    if what == "sample":
        return work.sample(model, size, steps)
    return {"forward": work.forward, "train": work.train, "decode": work.decode}[what](model, size)


def measure(args, model: work.Model, folder: Path, what: str, size: int) -> list[common.Row]:
    """One row a mode; JAX is measured again beside each."""
    from benchmarks import torch_side

    dtype, rows = model.config.dtype, []
    exact = dtype == "float32" and torch_side.DEVICE == "cuda"  # TF32 is for the timing, not for the check
    job = program(model, what, size, args.steps)
    expected = _outputs(what, job.compile("highest" if exact else None)()) if exact else None
    try:
        ours = job.compile()
        too_large = no_room(ours)
        first = None if too_large else _outputs(what, ours())
    except RuntimeError as error:
        if not common.out_of_memory(error):
            raise
        return [{"what": what, "batch": size, "mode": "JAX is out of memory"}]
    if too_large:
        print(f"{what}, batch {size}: {too_large}", flush=True)
        return [{"what": what, "batch": size, "mode": too_large}]
    expected = first if expected is None else expected
    compile_s = ours.trace_s + ours.compile_s
    for name in args.modes:
        row = {"what": what, "batch": size, "mode": name, "jax_compile_s": compile_s}
        try:
            row |= _pair(args, model, folder, what, size, name, ours, expected, exact)
        except RuntimeError as error:
            if not common.out_of_memory(error):
                raise
            row["mode"] += " is out of memory"
        except ValueError as error:
            print(f"{what}: {error}")
            return rows
        rows.append(row)
        told = {COLUMNS[k]: common.shown(row.get(k)) for k in ("error", "jax_ms", "torch_ms", "ratio")}
        print(f"{what}, batch {size}, {row['mode']}: " + ", ".join(f"{k} {v}" for k, v in told.items()), flush=True)
        gc.collect()
    return rows


def no_room(compiled: work.Compiled) -> str:
    """Why both sides cannot run in this machine's memory, "" if they can. On CPUs, where the system would kill the
    whole process; GPUs raise."""
    import jax

    planned, free = runtime.planned_gib(compiled.executable), common.free_gib()
    if planned is None or free is None or jax.default_backend() != "cpu":
        return ""
    held, temporary = planned  # JAX's arguments are there already; PyTorch's sizes are roughly the same
    needs = held + 2 * temporary
    return f"left out: it needs about {needs:.3g} GiB, {free:.3g} are free" if needs > free else ""


def _pair(args, model, folder, what, size, name, ours, expected, exact) -> common.Row:
    from benchmarks import torch_side, torch_train

    mode, bfloat16 = torch_side.MODES[name], model.config.dtype == "bfloat16"
    side = torch_side.Side(model, folder, mode, bfloat16, training=what == "train")
    torch_side.set_exact(exact)
    if what == "train":
        theirs = torch_train.TrainStep(side, size)
        seconds, found = common.timed(theirs.check)
    else:
        theirs = side.ddim(size, args.steps, _start(model, size)) if what == "sample" else getattr(side, what)(size)
        seconds, found = common.timed(theirs)
        found = side.array(found)
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error <= LIMITS[model.config.dtype]:
        sys.exit(f"{what}, batch {size}, {name}: outputs differ by {error:.2g} (relative): not the same work. "
                 f"JAX {expected.ravel()[:4]}, PyTorch {found.ravel()[:4]}")
    torch_side.set_exact(False)
    times = common.alternate({"jax": ours, "torch": theirs}, args.repeats)
    calls = args.steps if what == "sample" else 1
    jax_ms, torch_ms = (common.spread(times[s])["ms"] / calls for s in ("jax", "torch"))
    return {
        "error": error, "jax_ms": jax_ms, "torch_ms": torch_ms, "ratio": torch_ms / jax_ms,
        "jax_rate": size / jax_ms * 1e3, "torch_rate": size / torch_ms * 1e3, "torch_first_s": seconds,
        "jax_times": [t / calls for t in times["jax"]], "torch_times": [t / calls for t in times["torch"]],
    }  # fmt: skip


def _outputs(what: str, out) -> np.ndarray:
    return np.array([out[1]["loss"], out[1]["grad_norm"]]) if what == "train" else np.asarray(out, np.float32)


def _start(model: work.Model, size: int):
    """The noise that our sampler begins with."""
    import jax.numpy as jnp

    from ldm_jax.diffusion.samplers import start_noise
    from ldm_jax.generate import image_keys

    return start_noise(image_keys(0, jnp.arange(size)), model.latent)


def best(rows: list[common.Row]) -> list[common.Row]:
    """Per kind of work each side's highest rate over all batches and modes, and the ratio of the two.

    JAX was measured beside every mode; of these the middle one counts, not the luckiest.
    """
    out = []
    for what in dict.fromkeys(row["what"] for row in rows):
        some = [row for row in rows if row["what"] == what and "ratio" in row]
        if some:
            sizes = {row["batch"] for row in some}
            rates = {size: float(np.median([r["jax_rate"] for r in some if r["batch"] == size])) for size in sizes}
            size, theirs = max(rates, key=rates.get), max(some, key=lambda r: r["torch_rate"])
            out.append({
                "what": what, "JAX images/s": rates[size], "at batch": size,
                "PyTorch images/s": theirs["torch_rate"], "mode": theirs["mode"], "its batch": theirs["batch"],
                "JAX / PyTorch": rates[size] / theirs["torch_rate"],
            })  # fmt: skip
    return out


if __name__ == "__main__":
    common.run(main)
