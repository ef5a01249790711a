"""Samples images from a trained latent diffusion model.

    python sample.py --workdir=runs/ldm --num=16 --steps=50
    python sample.py --workdir=runs/imagenet --label 207 --label 9 --guidance=3
    python sample.py --workdir=runs/text --prompt "a red star" --guidance=5
    python sample.py --workdir=runs/inpainting --image=picture.png --mask=hole.png
    python sample.py --workdir=runs/text --prompt "a red star" --init=picture.png --strength=0.6
    python sample.py --workdir=runs/ldm --interpolate a.png b.png --num=8
    python sample.py --workdir=runs/ldm --size=512x512 --guide=small.png
    python sample.py --workdir=runs/ldm --classifier=runs/classifier --classifier-scale=2 --label=9
    python sample.py --workdir=runs/imagenet --label 207 --autoguide=runs/small
    python sample.py --workdir=runs/superres --image=picture.png --patch=512 --stride=256

Writes PNGs, a grid and, with --npz, all images in one file. Image i depends on (--seed, i) and its condition alone:
another --batch, or asking for more images, gives the same picture. Each PNG carries its settings (read_settings).
A model takes the conditions that it was trained with; files may be folders, too. From Python:
`ldm_jax.load(WORKDIR).sample(...)` takes the same options.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_jax import files, process, progress, shipped
from ldm_jax.cli import options

if TYPE_CHECKING:
    from ldm_jax.images import Images
    from ldm_jax.pipeline import Pipeline, Progress
    from ldm_jax.request import SampleRequest

GRID = 256  # images at most in grid.png
NOT_REQUEST = ("workdir", "out", "checkpoint", "no_ema", "npz", "preview", "distributed")


def parser() -> options.Parser:
    from ldm_jax import conditions
    from ldm_jax.diffusion.samplers import SAMPLERS
    from ldm_jax.diffusion.timetable import SPACINGS
    from ldm_jax.request import DISTANCES

    p = options.Parser(__doc__)
    add = p.add_argument
    add("--workdir", required=True, help="run directory, folder of Pipeline.save, or name of a model in pretrained/")
    add("--out", help="folder for the images (default: WORKDIR/samples; of a model by name samples/NAME)")
    add("--num", type=int, help="number of images for each condition (default: 16 without one, else 1)")
    add("--batch", type=int, default=16, help="images at a time; memory, not the result (default 16)")
    add("--steps", type=int, help="sampling steps (default 50; ddpm: all training steps)")
    add("--sampler", default="ddim", help=f"one of {', '.join(SAMPLERS)} (default ddim)")
    add("--eta", type=float, default=0.0, help="ddim: 0 deterministic (default) .. 1 as noisy as ddpm")
    add("--spacing", help=f"which training steps: {', '.join(SPACINGS)} (default: what suits the sampler)")
    add("--seed", type=int, default=0, help="default 0")
    add("--first", type=int, default=0, help="number of the first image, to make a long series in parts (default 0)")
    add("--checkpoint", type=int, help="step of the checkpoint (default: the newest)")
    add("--no-ema", action="store_true", help="use the raw instead of the averaged parameters")
    for option in conditions.all_options().values():
        repeats = dict(action="append") if option.repeats else {}
        add(f"--{option.name.replace('_', '-')}", type=option.type, help=option.help, **repeats)
    add(
        "--guidance",
        type=float,
        nargs="+",
        metavar="SCALE",
        help="scale of classifier-free guidance (default: without; 1 is the same as without); of several conditions "
        "also a scale for each",
    )
    add("--guidance-rescale", type=float, help="0 (off) .. 1: against over-saturation at large --guidance")
    add(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="--guidance or --autoguide where LOW < sigma <= HIGH alone, sigma = noise / signal (default: everywhere)",
    )
    add("--autoguide", help="run directory of a weaker model of the same latents and conditions: guides away from it")
    add("--autoguide-scale", type=float, help="scale of --autoguide (default 2; 1 is the same as without)")
    add("--autoguide-checkpoint", type=int, help="step of its checkpoint (default: the newest)")
    add("--classifier", help="run directory of a classifier of this model's latents: guides to --label")
    add("--classifier-scale", type=float, help="scale of --classifier (default 1)")
    add("--size", type=_size, help="HxW in pixels, other than trained with (default: as trained; pictures: theirs)")
    add("--init", help="picture to start from, noised (or a folder); it keeps its size unless --size is given")
    add("--strength", type=float, help="--init: share of the steps to run, above 0 (keep all) .. 1 (default 0.6)")
    add("--invert", action="store_true", help="--init: start from its noise by DDIM inversion (--strength default 1)")
    add("--interpolate", nargs=2, metavar=("A", "B"), help="two seeds or two pictures: --num (8) steps from A to B")
    add("--guide", help="picture, small or of full size, that the image made smaller is to match (slower)")
    add("--guide-distance", choices=tuple(DISTANCES), help="of --guide: l2 (default) or LPIPS")
    add("--lpips-weights", default="weights", help="folder of LPIPS' weights (default: weights)")
    add("--guide-scale", type=float, help="weight of --guide: inverse variance of its pixels in -1..1 (default 1)")
    add("--patch", type=int, help="large images: networks see squares of so many pixels, blended; bounds memory")
    add("--stride", type=int, help="--patch: pixels from one square to the next (default: half of --patch)")
    add("--distributed", action="store_true", help="several hosts share the batch, the same command on each (train.py)")
    add("--npz", action="store_true", help="also write samples.npz: uint8 [N,H,W,C] under 'arr_0'")
    add("--preview", type=int, metavar="N", help="write OUT/preview.png, what the model expects, after every N steps")
    return p


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with 2 for options that do not exist."""
    found = parser()
    args = found.parse_args(argv)
    for name in ("workdir", "classifier"):
        found.check_run(f"--{name}", getattr(args, name))
    if args.out is None and not files.is_local(files.at(args.workdir)):
        found.error(f"--workdir={args.workdir} is in a bucket: give the folder of the images with --out=DIR")
    found.make_local(args, "out", "lpips_weights")
    return args


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for example 384x1024")
    return int(height), int(width)


def request_of(args: argparse.Namespace) -> "SampleRequest":
    """RequestError for options that do not fit together."""
    from ldm_jax.request import make

    given = {name: value for name, value in vars(args).items() if name not in NOT_REQUEST and value is not None}
    if args.guidance and len(args.guidance) == 1:
        given["guidance"] = args.guidance[0]
    if args.interpolate and all(end.isdigit() for end in args.interpolate):
        given["interpolate"] = tuple(int(end) for end in args.interpolate)
    return make(given)


def run(args: argparse.Namespace) -> Path:
    """Writes the images; their folder. Of several hosts all sample, the first one writes."""
    import jax
    import numpy as np

    from ldm_jax import pipeline, rundir
    from ldm_jax.images import file_name, grid, png_texts, save_png
    from ldm_jax.request import resolve

    wanted, config = request_of(args), rundir.config_of(args.workdir)
    if config.task == "ldm":  # what is wrong is said before parameters are read
        resolve(wanted, config, args.workdir, rundir.tokenizer_of(args.workdir))
    if args.distributed:
        process.join_hosts()
    process.setup()
    pipe = pipeline.load(args.workdir, checkpoint=args.checkpoint, averaged=not args.no_ema)
    asked, settings, texts = pipe.resolve(wanted), pipe.settings(wanted), pipe.texts(wanted)
    out, writes = Path(args.out or samples_of(args.workdir)), jax.process_index() == 0
    if writes:
        print(", ".join(f"{name} {value}" for name, value in settings.items()), flush=True)
    line = SamplingLine(pipe, len(asked), writes)

    def preview(_: "Progress", made: "Images") -> None:
        if writes:
            made.grid().save(_folder(out) / "preview.png")

    stream = pipe.stream(
        wanted, on_progress=line.show, on_preview=preview if args.preview else None, preview_every=args.preview or 10
    )
    if not writes:
        for _ in stream:
            pass
        return out
    names, kept = [], []  # for the grid, and for the npz if there is to be one
    with line.live:
        for name, image in stream:
            index = wanted.first + len(names)
            names.append(file_name(index, name))
            save_png(out / names[-1], image, png_texts(texts, index, name))
            if args.npz or len(kept) < GRID:
                kept.append(image)
    print(f"{pipe.compiled} programs compiled in {pipe.compile_seconds:.1f} s")
    if len({image.shape for image in kept}) == 1:
        save_png(out / "grid.png", grid(np.stack(kept[:GRID])), texts)
        if args.npz:
            np.savez(out / "samples.npz", np.stack(kept))
    else:
        print("no grid" + (" and no samples.npz" if args.npz else "") + ": the images differ in size")
    print(f"{len(names)} images in {out}")
    older = [path for path in out.glob("[0-9]*.png") if path.name not in names]
    if older:
        print(f"note: {len(older)} other images were there before and are not from these settings")
    return out


def samples_of(run: str) -> Path:
    """Where its samples go."""
    return shipped.made_of(run) if shipped.is_name(run) else files.at(run) / "samples"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


class SamplingLine:
    """Progress: one live line on a terminal, a line a batch elsewhere."""

    def __init__(self, pipe: "Pipeline", total: int, active: bool):
        self.pipe, self.total, self.active = pipe, total, active
        self.began = time.perf_counter() - pipe.compile_seconds  # only what is compiled from now on is subtracted below
        self.live = progress.Line("images", total, unit="images", active=active)

    def show(self, now: "Progress") -> None:
        self.live.show(now.done, f"step {now.step}/{now.steps}")
        if not self.active or self.live.live or now.step < now.steps:
            return
        seconds = time.perf_counter() - self.began - self.pipe.compile_seconds
        left = seconds / now.done * (self.total - now.done)
        print(
            f"images {now.first + 1}-{now.first + now.number} of {self.total}, step {now.step}/{now.steps}, "
            f"{now.done / seconds:.3g} images/s, {left:.0f} s left",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    process.restart_with_hugepages()
    args = parse(argv)
    with options.mistakes("sample.py", as_flag):
        run(args)


def as_flag(message: str) -> str:
    """An error message, the option at its beginning named as in this script: guide_scale -> --guide-scale."""
    word = re.match(r"\w*", message)[0]
    known = {action.dest for action in parser()._actions}
    return "--" + word.replace("_", "-") + message[len(word) :] if word in known else message
