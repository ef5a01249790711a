"""Requests -> images: the loop of sample.py, its sampler compiled once for each size of an image.

`args` is what sample.parse gives, `config` that of the run.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import build, editing, generate
from ldm_jax.data.requests import Request
from ldm_jax.data.transforms import to_uint8
from ldm_jax.diffusion import starts
from ldm_jax.diffusion.timetable import Timetable, make_timetable
from ldm_jax.ldm import LDM
from ldm_jax.models.lpips import LPIPS
from ldm_jax.training.classifier import LatentClassifier

Tree = Any


def steps_of(args: Namespace, config: ConfigDict) -> int:
    """How many steps were asked for, or the default: 50, of ddpm all."""
    default = config.diffusion.timesteps if args.sampler == "ddpm" else min(50, config.diffusion.timesteps)
    return args.steps or default


def images(
    args: Namespace,
    config: ConfigDict,
    params: Tree,
    frozen: Tree,
    wanted: list[Request],
    classifier: tuple[LatentClassifier, Tree, int] | None = None,
) -> Iterator[np.ndarray]:
    """uint8 images [H,W,C] of the requests, in order; prints progress and throughput. Compiles once a size.

    classifier: (LatentClassifier, its parameters, step) of --classifier.
    """
    ldm = build.ldm(config)
    if args.patch:
        f = build.frame(config).f
        ldm = editing.in_patches(ldm, (args.patch // f,) * 2, (args.stride // f,) * 2, f)
    timetable = make_timetable(ldm.schedule, steps_of(args, config), args.spacing)
    if args.init:
        timetable = starts.shortened(timetable, args.strength)
    wanted = _with_starts(args, config, ldm, params, frozen, timetable, wanted)
    decode = jax.jit(ldm.decode)
    judge = (classifier[1], args.classifier_scale) if classifier else None

    def sampler(size: tuple[int, int], indices: list[int]):
        sample = _sampler(args, ldm, classifier and classifier[0], build.latent_shape(config, size))
        began = time.perf_counter()
        compiled = sample.lower(params, frozen, judge, *inputs(indices)).compile()
        print(f"sampler for {size[0]}x{size[1]} compiled in {time.perf_counter() - began:.1f} s", flush=True)
        return compiled

    def inputs(indices: list[int]):
        rows = [wanted[i].fields for i in indices]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return batch, args.seed, np.array(indices, np.int32), timetable, args.eta, args.guidance, args.guide_scale

    batch_size, spent, done, samplers = min(args.batch, len(wanted)), 0.0, 0, {}
    while done < len(wanted):
        size = wanted[done].size
        indices = [done]
        while len(indices) < batch_size and indices[-1] + 1 < len(wanted) and wanted[indices[-1] + 1].size == size:
            indices.append(indices[-1] + 1)
        number = len(indices)
        indices += [done] * (batch_size - number)  # a full batch, so that nothing is compiled again
        if size not in samplers:
            samplers[size] = sampler(size, indices)
        began = time.perf_counter()
        z = samplers[size](params, frozen, judge, *inputs(indices))
        z.block_until_ready()
        spent += time.perf_counter() - began
        decoded = to_uint8(np.asarray(decode(frozen, z)))
        yield from (wanted[i].finish(image) for i, image in zip(indices[:number], decoded))
        done += number
        rate = done / spent
        print(
            f"{done}/{len(wanted)} images, {rate:.3g} images/s and {rate * len(timetable.t):.4g} image steps/s "
            "without decoding",
            flush=True,
        )


def _sampler(
    args: Namespace, ldm: LDM, classifier: LatentClassifier | None, shape: tuple[int, int, int]
) -> Callable[..., jax.Array]:
    """(params, frozen, judge, batch, seed, indices, timetable, eta, guidance, guide_scale) -> z [B,h,w,c] of `shape`.

    judge: (parameters of the classifier, its scale), or None.
    """

    def judged(judge: tuple, batch: dict):
        """scale * log p(label | z_t, t)"""
        return lambda z_t, t: judge[1] * classifier.log_p(judge[0], z_t, t, batch["label"])

    @jax.jit
    def sample(params, frozen, judge, batch, seed, indices, timetable, eta, guidance, guide_scale):
        keys = generate.image_keys(seed, indices)
        z_T = starts.noised(batch["z"], keys, timetable) if "z" in batch else batch.get("z_T")
        log_p = None
        if "guide" in batch:
            net = args.lpips_net
            distance = editing.perceptual(LPIPS(net), frozen["lpips"]) if net else editing.half_square
            log_p = editing.matches(ldm, frozen, batch["guide"], guide_scale, distance)
        return generate.sample_latents(
            ldm, params, frozen, batch, keys, shape, timetable, eta, args.sampler, guidance, z_T, log_p,
            judged(judge, batch) if classifier else None,
        )  # fmt: skip

    return sample


def _with_starts(
    args: Namespace,
    config: ConfigDict,
    ldm: LDM,
    params: Tree,
    frozen: Tree,
    timetable: Timetable,
    wanted: list[Request],
) -> list[Request]:
    """The requests with a latent in place of "pictures": "z" [h,w,c], to be noised, or "z_T", where to start."""
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
            ends = [starts.start_noise(generate.image_keys(s, np.zeros(1, np.int32)), shape)[0] for s in args.seeds]
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
