"""Samples images from a trained latent diffusion model.

    python sample.py --workdir=runs/ldm --num=16 --steps=50

Writes numbered PNGs, a grid and, with --npz, all images in one file. Image i depends on (--seed, i) alone:
another --batch, or asking for more images, gives the same picture. Each PNG carries its settings as text.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--workdir", required=True, help="the run directory that train.py made")
    add("--out", help="folder for the images (default: WORKDIR/samples)")
    add("--num", type=_positive, default=16, help="number of images (default 16)")
    add("--batch", type=_positive, default=16, help="images at a time; memory, not the result (default 16)")
    add("--steps", type=_positive, help="sampling steps (default 50; ddpm: all training steps)")
    add("--sampler", default="ddim", help="ddim (default), ddpm, plms, ... (an unknown name lists them)")
    add("--eta", type=float, default=0.0, help="ddim: 0 deterministic (default) .. 1 as noisy as ddpm")
    add("--spacing", default="even", help="even (default) | trailing | original (the original's stride rule)")
    add("--seed", type=_seed, default=0, help="default 0")
    add("--checkpoint", type=int, help="step of the checkpoint (default: the newest)")
    add("--no-ema", action="store_true", help="use the raw instead of the averaged parameters")
    add("--npz", action="store_true", help="also write samples.npz: uint8 [N,H,W,C] under 'arr_0'")
    args = parser.parse_args(argv)
    if args.eta and args.sampler != "ddim":
        parser.error(f"--eta={args.eta} has no meaning for --sampler={args.sampler}; it belongs to ddim")
    if not 0 <= args.eta <= 1:
        parser.error(f"--eta={args.eta} must lie between 0 and 1")
    return args


GRID = 256  # images at most in grid.png


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{value} is not in 0..2147483647")
    return value


def main(args: argparse.Namespace) -> Path:
    from ml_collections import ConfigDict

    from ldm_jax import build
    from ldm_jax.training import checkpoint, logging, runtime

    runtime.setup()
    config = ConfigDict(checkpoint.load_config(args.workdir))
    if config.task != "ldm":
        raise build.Missing(
            f"{args.workdir} holds a run of task {config.task!r}. sample.py needs one of task 'ldm'; a first stage "
            "has no prior to sample from (its reconstructions are in pictures/)."
        )
    frozen = build.frozen(config, args.workdir, kept_only=True)
    state = build.restore(config, args.workdir, frozen, args.checkpoint)
    averaged = bool(config.ema.decay) and not args.no_ema
    params = state.ema if averaged else state.params
    step = int(state.step)
    del state
    out = Path(args.out or Path(args.workdir) / "samples")
    settings = dict(
        seed=args.seed, sampler=args.sampler, steps=_steps(args, config), eta=args.eta, spacing=args.spacing,
        checkpoint=f"{args.workdir} step {step}", weights="averaged" if averaged else "raw",
    )  # fmt: skip
    print(", ".join(f"{k} {v}" for k, v in settings.items()))
    images = []  # for the grid, and for the npz if there is to be one
    for i, image in enumerate(_generate(args, config, params, frozen)):
        logging.save_png(out / f"{i:06d}.png", image, settings | {"index": i})
        if args.npz or i < GRID:
            images.append(image)
    logging.save_png(out / "grid.png", logging.grid(np.stack(images[:GRID])), settings)
    if args.npz:
        np.savez(out / "samples.npz", np.stack(images))
    print(f"{args.num} images and grid.png in {out}")
    older = [p for p in out.glob("[0-9]*.png") if p.stem.isdigit() and int(p.stem) >= args.num]
    if older:
        print(f"note: {len(older)} images with higher numbers were there before and are not from these settings")
    return out


def _steps(args: argparse.Namespace, config) -> int:
    default = config.diffusion.timesteps if args.sampler == "ddpm" else min(50, config.diffusion.timesteps)
    return args.steps or default


def _generate(args: argparse.Namespace, config, params, frozen) -> Iterator[np.ndarray]:
    """uint8 images [H,W,C] in order; prints progress and throughput."""
    import jax
    import jax.numpy as jnp

    from ldm_jax import build, generate
    from ldm_jax.data.transforms import to_uint8
    from ldm_jax.diffusion.timetable import make_timetable

    ldm, shape = build.ldm(config), build.latent_shape(config)
    timetable = make_timetable(ldm.schedule, _steps(args, config), args.spacing)

    @jax.jit
    def sample(params, frozen, seed, indices, timetable, eta):
        keys = generate.image_keys(seed, indices)
        return generate.sample_latents(ldm, params, frozen, {}, keys, shape, timetable, eta, args.sampler)

    decode = jax.jit(ldm.decode)
    batch = min(args.batch, args.num)
    indices = np.arange(-(-args.num // batch) * batch, dtype=np.int32).reshape(-1, batch)
    began = time.perf_counter()
    inputs = params, frozen, args.seed, jnp.asarray(indices[0]), timetable, args.eta
    compiled = sample.lower(*inputs).compile()
    print(f"sampler compiled in {time.perf_counter() - began:.1f} s", flush=True)
    spent = 0.0
    for done, part in enumerate(indices, 1):
        began = time.perf_counter()
        z = compiled(params, frozen, args.seed, jnp.asarray(part), timetable, args.eta)
        z.block_until_ready()
        spent += time.perf_counter() - began
        yield from to_uint8(np.asarray(decode(frozen, z)))[: args.num - (done - 1) * batch]
        rate = done * batch / spent
        print(
            f"{min(done * batch, args.num)}/{args.num} images, {rate:.3g} images/s and "
            f"{rate * len(timetable.t):.4g} image steps/s without decoding",
            flush=True,
        )


if __name__ == "__main__":
    arguments = parse()
    try:
        main(arguments)
    except Exception as error:
        from ldm_jax.build import Missing

        if isinstance(error, Missing | FileNotFoundError | ValueError):
            sys.exit(f"sample.py: {error}")
        raise
