"""Side by side with PyTorch: the same networks, the same weights, the same machine, in turns.

    pip install -r requirements-bench.txt
    python benchmarks/compare_torch.py --config=configs/celeba_ldm4.py
    python benchmarks/compare_torch.py --config=configs/celeba_ldm4.py --what=train --dtype=bfloat16 --batch=16,64

Outputs are compared first (float32: relative error at most 1e-3, else it stops). Then both sides are called in turns,
in every mode that a PyTorch user would try (--modes). What is compared:

    forward   one call of the UNet
    train     one training step: encode, noise, loss, gradient, AdamW, EMA
    sample    DDIM, --steps steps, per step
    decode    latents to images

Last, each side's best batch and mode against the other's. Above 1 in "torch / jax": JAX is faster. Where the memory
is enough for one side only, that one is measured alone. Without --dtype and --batch: float32 and 1,4 on a CPU,
bfloat16 and 8,32,64,128 on a GPU.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, work
from ldm_jax import process

WHAT = ("forward", "train", "sample", "decode")
LIMITS = {"float32": 1e-3, "bfloat16": 0.1}
USUAL = {"cpu": ("float32", (1, 4)), "cuda": ("bfloat16", (8, 32, 64, 128))}
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
    p.set_defaults(batch=None)
    args, config = common.load(p, argv)
    # A GPU's memory is for both, and each side may have nearly all of it.
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # the older name; JAX refuses both at once
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.95")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    compiled = tempfile.TemporaryDirectory(prefix="ldm_jax_torch_")  # so that first calls compile
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled.name)
    try:
        import torch

        from benchmarks import torch_side
    except ImportError as error:
        sys.exit(f"{error}\n\nPyTorch's side: pip install -r requirements-bench.txt")
    args.modes = args.modes or torch_side.USUAL[torch_side.DEVICE]
    args.batch = args.batch or USUAL[torch_side.DEVICE][1]
    if not args.dtype and not any(option.startswith("--config.dtype=") for option in args.overrides):
        config.dtype = USUAL[torch_side.DEVICE][0]
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
    name = "-".join(("compare_torch", *(args.what if args.what != WHAT else ())))
    with folder, compiled:
        for what in args.what:
            for size in args.batch:
                rows += measure(args, model, Path(folder.name), what, size)
                common.save(args, name, rows, env, config.dtype, best=best(rows))  # what there is so far
    print(f"\n{common.table(rows, COLUMNS)}\n\nbest of each side:\n{common.table(best(rows))}")
    return rows


def program(model: work.Model, what: str, size: int, steps: int) -> work.Program:
    if what == "sample":
        return work.sample(model, size, steps)
    return {"forward": work.forward, "train": work.train, "decode": work.decode}[what](model, size)


def measure(args, model: work.Model, folder: Path, what: str, size: int) -> list[common.Row]:
    """One row a mode; JAX is measured again beside each. A side that has not enough memory has no time in its row."""
    from benchmarks import torch_side

    dtype, rows = model.config.dtype, []
    exact = dtype == "float32" and torch_side.DEVICE == "cuda"  # TF32 is for the timing, not for the check
    job = program(model, what, size, args.steps)
    ours = expected = None
    try:
        expected = _outputs(what, job.compile("highest")()) if exact else None
        ours = job.compile()
        too_large = no_room(ours)
        if too_large:
            print(f"{what}, batch {size}: {too_large}", flush=True)
            return [{"what": what, "batch": size, "mode": too_large}]
        first = _outputs(what, ours())
        expected = first if expected is None else expected
    except RuntimeError as error:
        if not common.out_of_memory(error):
            raise
        ours = expected = None
    for name in args.modes:
        row, lacking = {"what": what, "batch": size, "mode": name}, ""
        if ours:
            row["jax_compile_s"] = ours.trace_s + ours.compile_s
        try:
            row |= _pair(args, model, folder, what, size, name, ours, expected, exact)
        except torch_side.NotComparable as error:
            print(f"{what}: {error}")
            return rows
        except torch_side.COMPILE_ERRORS as error:
            row |= {"mode": f"{name} does not compile", "reason": str(error)[:300]}
        except RuntimeError as error:
            if not common.out_of_memory(error):
                raise
            lacking = "JAX" if "jax" in type(error).__module__ else "PyTorch"
        torch_side.forget()  # the error, which held PyTorch's arrays, is gone
        if lacking == "JAX":  # beside what PyTorch held
            row["mode"] += ": JAX is out of memory"
            ours = job.compile()  # its arguments may be lost
        elif lacking:
            row["mode"] += " is out of memory"
            row |= _timed(args, what, size, {"jax": ours} if ours else {})
        rows.append(row)
        printed = {COLUMNS[k]: common.shown(row.get(k)) for k in ("error", "jax_ms", "torch_ms", "ratio")}
        print(f"{what}, batch {size}, {row['mode']}: " + ", ".join(f"{k} {v}" for k, v in printed.items()), flush=True)
    return rows


def no_room(compiled: work.Compiled) -> str:
    """Why both sides cannot run in this machine's memory, "" if they can. On CPUs, where the system would kill the
    whole process; GPUs raise."""
    import jax

    planned, free = process.planned_gib(compiled.executable), common.free_gib()
    if planned is None or free is None or jax.default_backend() != "cpu":
        return ""
    held, temporary = planned  # JAX's arguments are there already; PyTorch's sizes are roughly the same
    needs = held + 2 * temporary
    return f"left out: it needs about {needs:.3g} GiB, {free:.3g} are free" if needs > free else ""


def _pair(args, model, folder, what, size, name, ours, expected, exact) -> common.Row:
    """One mode's row; without our program PyTorch alone, unchecked."""
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
    row = {"torch_first_s": seconds}
    if expected is not None:
        row["error"] = error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        if not error <= LIMITS[model.config.dtype]:
            sys.exit(
                f"{what}, batch {size}, {name}: outputs differ by {error:.2g} (relative): not the same work. "
                f"JAX {expected.ravel()[:4]}, PyTorch {found.ravel()[:4]}"
            )
    torch_side.set_exact(False)
    return row | _timed(args, what, size, ({"jax": ours} if ours else {}) | {"torch": theirs})


def _timed(args, what: str, size: int, sides: dict) -> common.Row:
    """The sides' columns, and the ratio where there are both."""
    row, calls = {}, args.steps if what == "sample" else 1
    for name, times in (common.alternate(sides, args.repeats) if sides else {}).items():
        row[f"{name}_ms"] = ms = common.spread(times)["ms"] / calls
        row |= {f"{name}_rate": size / ms * 1e3, f"{name}_times": [t / calls for t in times]}
    return row | ({"ratio": row["torch_ms"] / row["jax_ms"]} if len(sides) == 2 else {})


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
        ours, theirs = ([r for r in rows if r["what"] == what and f"{side}_rate" in r] for side in ("jax", "torch"))
        if ours and theirs:
            sizes = {row["batch"] for row in ours}
            rates = {size: float(np.median([r["jax_rate"] for r in ours if r["batch"] == size])) for size in sizes}
            size, winner = max(rates, key=rates.get), max(theirs, key=lambda r: r["torch_rate"])
            out.append({
                "what": what, "JAX images/s": rates[size], "at batch": size,
                "PyTorch images/s": winner["torch_rate"], "mode": winner["mode"], "its batch": winner["batch"],
                "JAX / PyTorch": rates[size] / winner["torch_rate"],
            })  # fmt: skip
    return out


if __name__ == "__main__":
    common.run(main)
