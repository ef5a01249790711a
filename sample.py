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
    add("--seed", type=int, default=0, help="default 0")
    add("--checkpoint", type=int, help="step of the checkpoint (default: the newest)")
    add("--no-ema", action="store_true", help="use the raw instead of the averaged parameters")
    add("--npz", action="store_true", help="also write samples.npz: uint8 [N,H,W,C] under 'arr_0'")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
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
    frozen = build.frozen(config, args.workdir)
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
    images = []
    for image in _generate(args, config, params, frozen):
        logging.save_png(out / f"{len(images):06d}.png", image, settings | {"index": len(images)})
        images.append(image)
    images = np.stack(images)
    logging.save_png(out / "grid.png", logging.grid(images[:256]), settings)
    if args.npz:
        np.savez(out / "samples.npz", images)
    print(f"{len(images)} images and grid.png in {out}")
    return out


def _steps(args: argparse.Namespace, config) -> int:
    default = config.diffusion.timesteps if args.sampler == "ddpm" else min(50, config.diffusion.timesteps)
    return args.steps or default


def _generate(args: argparse.Namespace, config, params, frozen) -> Iterator[np.ndarray]:
    """uint8 images [H,W,C] in order; prints progress and throughput."""
    import jax
    import jax.numpy as jnp

    from ldm_jax import build, generate
    from ldm_jax.diffusion.timetable import make_timetable
    from ldm_jax.training.logging import to_uint8

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
