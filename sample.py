"""Samples images from a trained latent diffusion model.

    python sample.py --workdir=runs/ldm --num=16 --steps=50
    python sample.py --workdir=runs/imagenet --label 207 --label 9 --guidance=3
    python sample.py --workdir=runs/text --prompt "a red star" --guidance=5
    python sample.py --workdir=runs/inpainting --image=picture.png --mask=hole.png
    python sample.py --workdir=runs/text --prompt "a red star" --init=picture.png --strength=0.6
    python sample.py --workdir=runs/ldm --interpolate a.png b.png --num=8
    python sample.py --workdir=runs/ldm --size=512x512 --guide=small.png
    python sample.py --workdir=runs/ldm --classifier=runs/classifier --classifier-scale=2 --label=9
    python sample.py --workdir=runs/superres --image=picture.png --patch=512 --stride=256

Writes PNGs, a grid and, with --npz, all images in one file. Image i depends on (--seed, i) and its condition alone:
another --batch, or asking for more images, gives the same picture. Each PNG carries its settings as text.
A model takes the conditions that it was trained with; files may be folders, too.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from ldm_jax import process

# --guide-distance: the backbone of LPIPS, whose weights --lpips-weights holds.
DISTANCES = {"l2": None, "lpips": "vgg16", "lpips_alex": "alex"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--workdir", required=True, help="the run directory that train.py made")
    add("--out", help="folder for the images (default: WORKDIR/samples)")
    add("--num", type=_positive, help="number of images for each condition (default: 16 without one, else 1)")
    add("--batch", type=_positive, default=16, help="images at a time; memory, not the result (default 16)")
    add("--steps", type=_positive, help="sampling steps (default 50; ddpm: all training steps)")
    add("--sampler", default="ddim", help="ddim (default), ddpm, plms, ... (an unknown name lists them)")
    add("--eta", type=float, default=0.0, help="ddim: 0 deterministic (default) .. 1 as noisy as ddpm")
    add("--spacing", default="even", help="even (default) | trailing | original (the original's stride rule)")
    add("--seed", type=_seed, default=0, help="default 0")
    add("--checkpoint", type=int, help="step of the checkpoint (default: the newest)")
    add("--no-ema", action="store_true", help="use the raw instead of the averaged parameters")
    add("--label", type=int, action="append", help="class; may be given again for more")
    add("--prompt", action="append", help="text; may be given again for more")
    add("--prompts", help="file with a text a line")
    add("--layout", help='boxes: a JSON file of [{"box": [x0,y0,x1,y1] in 0..1, "class": 3}, ...]')
    add("--segmentation", help="map of classes: a grey PNG")
    add("--image", help="picture to enlarge (super-resolution) or to fill (inpainting)")
    add("--mask", help="inpainting: a PNG, white where the picture is to be filled")
    add("--feather", type=float, default=0.0, help="inpainting: blend over so many pixels at the hole's edge (0)")
    add("--vectors", help="retrieval-augmented models: a .npy of CLIP vectors")
    add("--guidance", type=float, help="scale of classifier-free guidance (default: without; 1 is the same as without)")
    add("--classifier", help="run directory of a classifier of this model's latents: guides to --label")
    add("--classifier-scale", "--classifier_scale", type=float, help="scale of --classifier (default 1)")
    add("--size", type=_size, help="HxW in pixels, other than trained with (default: as trained; pictures: theirs)")
    add("--init", help="picture to start from, noised (or a folder); it keeps its size unless --size is given")
    add("--strength", type=float, help="--init: share of the steps to run, above 0 (keep all) .. 1 (default 0.6)")
    add("--invert", action="store_true", help="--init: start from its noise by DDIM inversion (--strength default 1)")
    add("--interpolate", nargs=2, metavar=("A", "B"), help="two seeds or two pictures: --num (8) steps from A to B")
    add("--guide", help="picture, small or of full size, that the image made smaller is to match (slower)")
    add("--guide-distance", "--guide_distance", choices=tuple(DISTANCES), help="of --guide: l2 (default) or LPIPS")
    add("--lpips-weights", "--lpips_weights", default="weights", help="folder of LPIPS' weights (default: weights)")
    add("--guide-scale", type=float, help="weight of --guide: inverse variance of its pixels in -1..1 (default 1)")
    add("--patch", type=_positive, help="large images: networks see squares of so many pixels, blended; bounds memory")
    add("--stride", type=_positive, help="--patch: pixels from one square to the next (default: half of --patch)")
    add("--npz", action="store_true", help="also write samples.npz: uint8 [N,H,W,C] under 'arr_0'")
    args = parser.parse_args(argv)
    if args.eta and args.sampler != "ddim":
        parser.error(f"--eta={args.eta} has no meaning for --sampler={args.sampler}; it belongs to ddim")
    if not 0 <= args.eta <= 1:
        parser.error(f"--eta={args.eta} must lie between 0 and 1")
    _check_editing(parser, args)
    return args


def _check_editing(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that need another one, or exclude it; then their defaults, `seeds` of --interpolate and `lpips_net`."""
    needs = {
        "strength": "init", "invert": "init", "guide_scale": "guide", "guide_distance": "guide",
        "classifier_scale": "classifier", "stride": "patch",
    }  # fmt: skip
    for option, other in needs.items():
        if getattr(args, option) and not getattr(args, other):
            parser.error(f"--{option.replace('_', '-')} belongs to --{other}, which is not given")
    if args.init and args.interpolate:
        parser.error("--init and --interpolate are two ways to start; give one")
    if (args.invert or args.interpolate) and (args.eta or args.sampler == "ddpm"):
        option = "--invert" if args.invert else "--interpolate"
        parser.error(f"{option} needs a sampler that draws no noise: not ddpm, and without --eta")
    try:
        args.seeds = _seeds(args.interpolate or [])
    except argparse.ArgumentTypeError as error:
        parser.error(f"--interpolate: {error}")
    if args.interpolate and args.num == 1:
        parser.error("--num=1: --interpolate makes at least 2 images")
    if args.strength is not None and not 0 < args.strength <= 1:
        parser.error(f"--strength={args.strength} must lie above 0 and at most at 1")
    if args.stride and args.stride > args.patch:
        parser.error(f"--stride={args.stride} leaves gaps between squares of --patch={args.patch}")
    if args.init and args.strength is None:
        args.strength = 1.0 if args.invert else 0.6
    if args.classifier and not args.label:
        parser.error("--classifier needs --label, the class to guide to")
    if args.classifier and args.classifier_scale is None:
        args.classifier_scale = 1.0
    if args.guide and args.guide_scale is None:
        args.guide_scale = 1.0
    if args.guide and args.guide_distance is None:
        args.guide_distance = "l2"
    args.lpips_net = DISTANCES.get(args.guide_distance)
    if args.patch and not args.stride:
        args.stride = args.patch // 2


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


def _seeds(ends: list[str]) -> list[int]:
    """The two seeds of --interpolate, or [] where it names pictures or is not given."""
    return [_seed(end) for end in ends] if all(end.isdigit() for end in ends) else []


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for example 384x1024")
    return int(height), int(width)


def main(args: argparse.Namespace) -> Path:
    from ml_collections import ConfigDict

    from ldm_jax import build, runs
    from ldm_jax.sampling import loop, options
    from ldm_jax.training import checkpoint, logging

    process.setup()
    config = ConfigDict(checkpoint.load_config(args.workdir))
    if config.task != "ldm":
        raise build.Missing(
            f"{args.workdir} holds a run of task {config.task!r}. sample.py needs one of task 'ldm'; a first stage "
            "has no prior to sample from (its reconstructions are in pictures/), a classifier is for --classifier."
        )
    wanted = options.requests_of(args, config)
    frozen = runs.frozen(config, args.workdir, kept_only=True)
    averaged = bool(config.ema.decay) and not args.no_ema
    params, step = runs.weights(config, args.workdir, args.checkpoint, averaged)
    if args.lpips_net:
        without = "or compare pixels: --guide-distance=l2"
        frozen |= {"lpips": runs.lpips_params(args.lpips_net, args.lpips_weights, without)}
    classifier = runs.guide(args.classifier, config, frozen, args.workdir) if args.classifier else None
    out = Path(args.out or Path(args.workdir) / "samples")
    settings = dict(
        seed=args.seed, sampler=args.sampler, steps=loop.steps_of(args, config), eta=args.eta, spacing=args.spacing,
        guidance=args.guidance, checkpoint=f"{args.workdir} step {step}", weights="averaged" if averaged else "raw",
        init=args.init, strength=args.strength, invert=args.invert or None, guide=args.guide,
        guide_distance=args.guide_distance, guide_scale=args.guide_scale,
        interpolate=args.interpolate and " to ".join(args.interpolate),
        classifier=classifier and f"{args.classifier} step {classifier[2]}", classifier_scale=args.classifier_scale,
        patch=args.patch, stride=args.stride,
    )  # fmt: skip
    print(", ".join(f"{k} {v}" for k, v in settings.items() if v is not None))
    images, names = [], []  # for the grid, and for the npz if there is to be one
    for i, image in enumerate(loop.images(args, config, params, frozen, wanted, classifier)):
        request = wanted[i]
        names.append(f"{i:06d}{_slug(request.name)}.png")
        told = {k: v for k, v in settings.items() if v is not None} | {"index": i}
        logging.save_png(out / names[-1], image, told | ({"condition": request.name} if request.name else {}))
        if args.npz or i < GRID:
            images.append(image)
    if len({image.shape for image in images}) == 1:
        logging.save_png(out / "grid.png", logging.grid(np.stack(images[:GRID])), settings)
        if args.npz:
            np.savez(out / "samples.npz", np.stack(images))
    else:
        print("no grid" + (" and no samples.npz" if args.npz else "") + ": the images differ in size")
    print(f"{len(wanted)} images in {out}")
    older = [p for p in out.glob("[0-9]*.png") if p.name not in names]
    if older:
        print(f"note: {len(older)} other images were there before and are not from these settings")
    return out


def _slug(name: str) -> str:
    """A condition's name for a file's: "a red star" -> "_a-red-star"."""
    words = "".join(c if c.isalnum() else " " for c in name).split()
    return "_" + "-".join(words)[:60] if words else ""


if __name__ == "__main__":
    process.restart_with_hugepages()
    arguments = parse()
    try:
        main(arguments)
    except Exception as error:
        from ldm_jax.build import Missing
        from ldm_jax.sampling.options import WrongRequest

        if isinstance(error, WrongRequest | Missing | FileNotFoundError | ValueError):
            print(f"sample.py: {error}", file=sys.stderr)
            sys.exit(2)
        raise
