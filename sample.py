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
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Conditions a model can be asked for; ldm_jax/conditions.py says which kind of model takes which.
CONDITIONS = ("label", "prompt", "prompts", "layout", "segmentation", "image", "mask", "vectors")


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
    """Options that need another one, or exclude it; then their defaults."""
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
        _seeds(args)
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


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, for example 384x1024")
    return int(height), int(width)


class WrongRequest(Exception):
    """The model does not take what was asked for."""


def main(args: argparse.Namespace) -> Path:
    import jax
    from ml_collections import ConfigDict

    from ldm_jax import build
    from ldm_jax.training import checkpoint, logging, runtime

    runtime.setup()
    config = ConfigDict(checkpoint.load_config(args.workdir))
    if config.task != "ldm":
        raise build.Missing(
            f"{args.workdir} holds a run of task {config.task!r}. sample.py needs one of task 'ldm'; a first stage "
            "has no prior to sample from (its reconstructions are in pictures/), a classifier is for --classifier."
        )
    wanted = _requests(args, config)
    frozen = build.frozen(config, args.workdir, kept_only=True)
    averaged = bool(config.ema.decay) and not args.no_ema
    part = "ema" if averaged else "params"
    state = build.restore_parts(config, args.workdir, ("step", part), args.checkpoint)
    if DISTANCES.get(args.guide_distance):
        without = "or compare pixels: --guide-distance=l2"
        frozen |= {"lpips": build.lpips_params(DISTANCES[args.guide_distance], args.lpips_weights, without)}
    params = jax.device_put(getattr(state, part))
    step = int(state.step)
    del state
    classifier = build.guide(args.classifier, config, frozen, args.workdir) if args.classifier else None
    out = Path(args.out or Path(args.workdir) / "samples")
    settings = dict(
        seed=args.seed, sampler=args.sampler, steps=_steps(args, config), eta=args.eta, spacing=args.spacing,
        guidance=args.guidance, checkpoint=f"{args.workdir} step {step}", weights="averaged" if averaged else "raw",
        init=args.init, strength=args.strength, invert=args.invert or None, guide=args.guide,
        guide_distance=args.guide_distance, guide_scale=args.guide_scale,
        interpolate=args.interpolate and " to ".join(args.interpolate),
        classifier=classifier and f"{args.classifier} step {classifier[2]}", classifier_scale=args.classifier_scale,
        patch=args.patch, stride=args.stride,
    )  # fmt: skip
    print(", ".join(f"{k} {v}" for k, v in settings.items() if v is not None))
    images, names = [], []  # for the grid, and for the npz if there is to be one
    for i, image in enumerate(_generate(args, config, params, frozen, wanted, classifier)):
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


def _requests(args: argparse.Namespace, config) -> list:
    """One Request an image. Raises WrongRequest for conditions that this model does not take, or lacks."""
    import dataclasses

    from ldm_jax import build, conditions

    kind, groups = conditions.kind_of(config), conditions.takes(config.conditioner)
    taken = [name for group in groups for name in group]
    given = [name for name in CONDITIONS if getattr(args, name) is not None]
    if args.classifier and "label" not in taken:
        given.remove("label")  # it is the classifier's
    takes = [" or ".join(f"--{name}" for name in group) for group in groups]
    of = (
        f"{args.workdir} is a model of kind {config.conditioner.kind!r}, which takes "
        f"{' and '.join(takes) or 'no condition'}"
    )
    wrong = [name for name in given if name not in taken]
    if wrong:
        raise WrongRequest(f"--{wrong[0]} means nothing here: {of}")
    missing = [text for text, group in zip(takes, groups) if not set(group) & set(given)]
    if missing:
        raise WrongRequest(f"{missing[0]} is missing: {of}")
    if args.guidance is not None and not config.conditioner.drop_prob:
        raise WrongRequest(
            f"--guidance={args.guidance:g} needs a model that also learnt without its condition, and {args.workdir} "
            "was trained with config.conditioner.drop_prob=0. Leave --guidance out, or train with drop_prob=0.1"
        )
    if args.feather and "mask" not in taken:
        raise WrongRequest(f"--feather means nothing here: {of}")
    frame = build.frame(config, args.size)
    made = kind.requests(config.conditioner, args, frame, Path(args.workdir) / "tokenizer")
    if args.size and made[0].size not in (None, args.size):
        raise WrongRequest(f"--size={args.size[0]}x{args.size[1]} means nothing here: it is that of {made[0].name}")
    multiple = frame.f * frame.divisor
    if any(n % frame.divisor for n in frame.latent):
        raise WrongRequest(f"--size={args.size[0]}x{args.size[1]}: this model takes multiples of {multiple}")
    if args.patch and (args.patch % multiple or args.stride % frame.f):
        raise WrongRequest(
            f"--patch={args.patch} --stride={args.stride}: this model takes patches that are multiples of {multiple} "
            f"and strides that are multiples of {frame.f}"
        )
    made = _with_pictures(args, config.data.channels, multiple, made)
    size = args.size or (config.data.image_size,) * 2
    made = [dataclasses.replace(r, size=r.size or size) for r in made]
    if args.patch and (coder := conditions.crop_coder(config.conditioner)):
        made = _with_crops(args, coder, frame.f, made)
    if args.classifier:
        made = _with_classes(args, config, made)
    if args.guide:
        made = _with_guide(args, config.data.channels, made)
    default = 8 if args.interpolate else 1 if taken or args.classifier or args.init else 16
    return [r for r in made for _ in range(args.num or default)]


def _seeds(args: argparse.Namespace) -> list[int]:
    """The two seeds of --interpolate, or [] where it names pictures or is not given."""
    ends = args.interpolate or []
    return [_seed(end) for end in ends] if all(end.isdigit() for end in ends) else []


def _with_pictures(args: argparse.Namespace, channels: int, multiple: int, made: list) -> list:
    """Every request with every picture of --init, or with the two of --interpolate: field "pictures" [1|2,H,W,C]."""
    import dataclasses

    from ldm_jax.data import requests

    if args.init:
        groups = [[p] for p in requests.pictures(args.init, channels, multiple, args.size)]
    elif args.interpolate and not _seeds(args):
        groups = [[_one(path, channels, multiple, args.size) for path in args.interpolate]]
    else:
        return made
    joined = []
    for request in made:
        for group in groups:
            sizes = {p.size for p in group} | ({request.size} - {None})
            if len(sizes) > 1:
                found = " and ".join(sorted(f"{h}x{w}" for h, w in sizes))
                raise WrongRequest(f"pictures to start from and conditions of one size are needed, these are {found}")
            name = " ".join(n for n in (request.name, *(p.name for p in group)) if n)
            pictures = {"pictures": np.stack([p.fields["picture"] for p in group])}
            finish = request.finish if request.size else group[0].finish
            new = dict(name=name, fields=request.fields | pictures, size=group[0].size, finish=finish)
            joined.append(dataclasses.replace(request, **new))
    return joined


def _with_guide(args: argparse.Namespace, channels: int, made: list) -> list:
    """Every request with the field "guide" [h,w,C], the picture of --guide."""
    import dataclasses

    guide = _one(args.guide, channels)
    height, width = guide.size
    for h, w in {r.size for r in made}:
        if h * width != w * height or height > h:
            raise WrongRequest(
                f"--guide={args.guide} is {height}x{width}, the image {h}x{w}: the guide must have its proportions "
                "and be no larger (--size=HxW says how large the image is)"
            )
    return [dataclasses.replace(r, fields=r.fields | {"guide": guide.fields["picture"]}) for r in made]


def _with_crops(args: argparse.Namespace, coder, f: int, made: list) -> list:
    """Every layout with the field "crop_tokens" [P,2]: which part of the image each of the patches is."""
    import dataclasses

    from ldm_jax.diffusion import patches

    def crops(size: tuple[int, int]) -> np.ndarray:
        latent = tuple(n // f for n in size)
        boxes = patches.boxes(latent, (args.patch // f,) * 2, (args.stride // f,) * 2)
        return np.array([coder.corners(tuple(box)) for box in boxes], np.int32)

    return [dataclasses.replace(r, fields=r.fields | {"crop_tokens": crops(r.size)}) for r in made]


def _with_classes(args: argparse.Namespace, config, made: list) -> list:
    """Every request with the field "label" [], which the classifier of --classifier knows, at a size that it takes."""
    import dataclasses

    from ldm_jax import build
    from ldm_jax.data import requests

    theirs = build.guide_config(args.classifier, config, args.workdir)
    seen = build.latent_shape(theirs)[:2]
    for h, w in {r.size for r in made}:
        size = build.latent_shape(config, (h, w))[:2]
        if theirs.classifier.pool == "attention" and size != seen:
            trained = theirs.data.image_size
            raise WrongRequest(f"{args.classifier} sees images of {trained}x{trained} pixels alone, not of {h}x{w}")
    classes = requests.labels(args.label, theirs.classifier.n_classes)
    if "label" in made[0].fields:
        return made
    joined = [(r, c, " ".join(filter(None, (r.name, c.name)))) for r in made for c in classes]
    return [dataclasses.replace(r, name=name, fields=r.fields | c.fields) for r, c, name in joined]


def _one(path: str, channels: int, multiple: int = 1, size: tuple[int, int] | None = None):
    from ldm_jax.data import requests

    found = requests.pictures(path, channels, multiple, size)
    if len(found) != 1:
        raise WrongRequest(f"{path} holds {len(found)} pictures, one is needed")
    return found[0]


def _steps(args: argparse.Namespace, config) -> int:
    default = config.diffusion.timesteps if args.sampler == "ddpm" else min(50, config.diffusion.timesteps)
    return args.steps or default


def _with_starts(args: argparse.Namespace, config, ldm, params, frozen, timetable, wanted: list) -> list:
    """The requests with a latent in place of "pictures": "z" [h,w,c], to be noised, or "z_T", where to start."""
    from dataclasses import replace
    from functools import partial
    from itertools import groupby

    import jax

    from ldm_jax import build, editing, generate
    from ldm_jax.diffusion import starts

    if not (args.init or args.interpolate):
        return wanted
    encode, invert = jax.jit(ldm.encode), jax.jit(partial(editing.invert_image, ldm))
    made = []
    for _, group in groupby(wanted, key=id):  # the images of one condition
        same = list(group)
        pictures = same[0].fields.get("pictures")
        fields = {name: value for name, value in same[0].fields.items() if name != "pictures"}
        if pictures is None:
            shape = build.latent_shape(config, same[0].size)
            ends = [starts.start_noise(generate.image_keys(s, np.zeros(1, np.int32)), shape)[0] for s in _seeds(args)]
        elif args.invert or args.interpolate:
            batch = {name: np.stack([value] * len(pictures)) for name, value in fields.items()}
            ends = invert(params, frozen, batch, pictures, timetable)
        else:
            ends = encode(frozen, pictures)
        if args.interpolate:
            latents = np.asarray(starts.slerp(*ends, np.linspace(0, 1, len(same))))
        else:
            latents = [np.asarray(ends[0])] * len(same)
        name = "z_T" if args.invert or args.interpolate else "z"
        made += [replace(r, fields=fields | {name: z}) for r, z in zip(same, latents)]
    return made


def _generate(
    args: argparse.Namespace, config, params, frozen, wanted: list, classifier: tuple | None = None
) -> Iterator[np.ndarray]:
    """uint8 images [H,W,C] of the requests, in order; prints progress and throughput. Compiles once a size.

    classifier: (LatentClassifier, its parameters, step) of --classifier.
    """
    from functools import cache

    import jax

    from ldm_jax import build, editing, generate
    from ldm_jax.data.transforms import to_uint8
    from ldm_jax.diffusion import starts
    from ldm_jax.diffusion.timetable import make_timetable
    from ldm_jax.models.lpips import LPIPS

    ldm = build.ldm(config)
    if args.patch:
        f = build.frame(config).f
        ldm = editing.in_patches(ldm, (args.patch // f,) * 2, (args.stride // f,) * 2, f)
    timetable = make_timetable(ldm.schedule, _steps(args, config), args.spacing)
    if args.init:
        timetable = starts.shortened(timetable, args.strength)
    wanted = _with_starts(args, config, ldm, params, frozen, timetable, wanted)
    decode = jax.jit(ldm.decode)
    judge = (classifier[1], args.classifier_scale) if classifier else None
    net = DISTANCES.get(args.guide_distance)

    def distance(frozen):
        return editing.perceptual(LPIPS(net), frozen["lpips"]) if net else editing.half_square

    def judged(judge: tuple, batch: dict):
        """scale * log p(label | z_t, t)"""
        return lambda z_t, t: judge[1] * classifier[0].log_p(judge[0], z_t, t, batch["label"])

    @cache
    def sampler(size: tuple[int, int]):
        shape = build.latent_shape(config, size)

        @jax.jit
        def sample(params, frozen, judge, batch, seed, indices, timetable, eta, guidance, guide_scale):
            keys = generate.image_keys(seed, indices)
            z_T = starts.noised(batch["z"], keys, timetable) if "z" in batch else batch.get("z_T")
            log_p = None
            if "guide" in batch:
                log_p = editing.matches(ldm, frozen, batch["guide"], guide_scale, distance(frozen))
            return generate.sample_latents(
                ldm, params, frozen, batch, keys, shape, timetable, eta, args.sampler, guidance, z_T, log_p,
                judged(judge, batch) if classifier else None,
            )  # fmt: skip

        began = time.perf_counter()
        compiled = sample.lower(params, frozen, judge, *inputs([0] * batch_size)).compile()
        print(f"sampler for {size[0]}x{size[1]} compiled in {time.perf_counter() - began:.1f} s", flush=True)
        return compiled

    def inputs(indices: list[int]):
        rows = [wanted[i].fields for i in indices]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return batch, args.seed, np.array(indices, np.int32), timetable, args.eta, args.guidance, args.guide_scale

    batch_size, spent, done = min(args.batch, len(wanted)), 0.0, 0
    while done < len(wanted):
        size = wanted[done].size
        indices = [done]
        while len(indices) < batch_size and indices[-1] + 1 < len(wanted) and wanted[indices[-1] + 1].size == size:
            indices.append(indices[-1] + 1)
        number = len(indices)
        indices += [done] * (batch_size - number)  # a full batch, so that nothing is compiled again
        run = sampler(size)
        began = time.perf_counter()
        z = run(params, frozen, judge, *inputs(indices))
        z.block_until_ready()
        spent += time.perf_counter() - began
        images = to_uint8(np.asarray(decode(frozen, z)))
        yield from (wanted[i].finish(image) for i, image in zip(indices[:number], images))
        done += number
        rate = done / spent
        print(
            f"{done}/{len(wanted)} images, {rate:.3g} images/s and {rate * len(timetable.t):.4g} image steps/s "
            "without decoding",
            flush=True,
        )


if __name__ == "__main__":
    arguments = parse()
    try:
        main(arguments)
    except Exception as error:
        from ldm_jax.build import Missing

        if isinstance(error, WrongRequest | Missing | FileNotFoundError | ValueError):
            print(f"sample.py: {error}", file=sys.stderr)
            sys.exit(2)
        raise
