"""The options of sample.py -> Requests, one an image; refuses what the model in the run directory does not take.

`args` is what sample.parse gives, `config` that of the run.
"""

import dataclasses
from argparse import Namespace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ldm_jax import build, conditions, runs
from ldm_jax.data import requests
from ldm_jax.data.layout import LayoutCoder
from ldm_jax.data.requests import Request
from ldm_jax.diffusion import patches

# Conditions a model can be asked for; ldm_jax/conditions.py says which kind of model takes which.
CONDITIONS = ("label", "prompt", "prompts", "layout", "segmentation", "image", "mask", "vectors")


class WrongRequest(Exception):
    """The model does not take what was asked for."""


def requests_of(args: Namespace, config: ConfigDict) -> list[Request]:
    """One Request an image. Raises WrongRequest for conditions that this model does not take, or lacks."""
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


def _with_pictures(args: Namespace, channels: int, multiple: int, made: list[Request]) -> list[Request]:
    """Every request with every picture of --init, or with the two of --interpolate: field "pictures" [1|2,H,W,C]."""
    if args.init:
        groups = [[p] for p in requests.pictures(args.init, channels, multiple, args.size)]
    elif args.interpolate and not args.seeds:
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


def _with_crops(args: Namespace, coder: LayoutCoder, f: int, made: list[Request]) -> list[Request]:
    """Every layout with the field "crop_tokens" [P,2]: which part of the image each of the patches is."""

    def crops(size: tuple[int, int]) -> np.ndarray:
        latent = tuple(n // f for n in size)
        boxes = patches.boxes(latent, (args.patch // f,) * 2, (args.stride // f,) * 2)
        return np.array([coder.corners(tuple(box)) for box in boxes], np.int32)

    return [dataclasses.replace(r, fields=r.fields | {"crop_tokens": crops(r.size)}) for r in made]


def _with_classes(args: Namespace, config: ConfigDict, made: list[Request]) -> list[Request]:
    """Every request with the field "label" [], which the classifier of --classifier knows, at a size that it takes."""
    theirs = runs.guide_config(args.classifier, config, args.workdir)
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


def _with_guide(args: Namespace, channels: int, made: list[Request]) -> list[Request]:
    """Every request with the field "guide" [h,w,C], the picture of --guide."""
    guide = _one(args.guide, channels)
    height, width = guide.size
    for h, w in {r.size for r in made}:
        if h * width != w * height or height > h:
            raise WrongRequest(
                f"--guide={args.guide} is {height}x{width}, the image {h}x{w}: the guide must have its proportions "
                "and be no larger (--size=HxW says how large the image is)"
            )
    return [dataclasses.replace(r, fields=r.fields | {"guide": guide.fields["picture"]}) for r in made]


def _one(path: str, channels: int, multiple: int = 1, size: tuple[int, int] | None = None) -> Request:
    found = requests.pictures(path, channels, multiple, size)
    if len(found) != 1:
        raise WrongRequest(f"{path} holds {len(found)} pictures, one is needed")
    return found[0]
