"""A trained LDM beyond sampling: large images in patches, inversion of pictures, reconstruction guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.conditions.base import Batch, Cond, ConditionNetwork
from ldm_jax.diffusion import starts
from ldm_jax.diffusion.patches import patchwise
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.diffusion.timetable import Timetable
from ldm_jax.generate import DiffusionModel, denoiser
from ldm_jax.ldm import LDM
from ldm_jax.models.lpips import LPIPS

Tree = Any


@dataclass(frozen=True)
class InPatches:
    """A model whose networks see overlapping patches, one after the other (the original's split_input_params).

    Memory is that of whole latents and images and of the networks on one patch. encode, decode and predict (at every
    step) are blended with the weights of diffusion/patches.py. Spatial conditions are cut like the latent. Every patch
    has the whole context; that of a layout has the patch's own crop tokens. Where one patch covers the image the result
    is exactly the model's.
    patch, stride: in latent pixels; f: pixels of the image to one of the latent.
    """

    model: LDM
    patch: tuple[int, int] = (32, 32)
    stride: tuple[int, int] = (16, 16)
    f: int = 1

    @property
    def schedule(self) -> NoiseSchedule:
        return self.model.schedule

    @property
    def conditioner(self) -> ConditionNetwork:
        return self.model.conditioner

    def encode(self, frozen: Tree, image: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """As the model's; patches of f times `patch` pixels. With keys every patch draws the same noise."""
        patch, stride = (tuple(self.f * n for n in sizes) for sizes in (self.patch, self.stride))
        return patchwise(lambda x: self.model.encode(frozen, x, keys), image, patch, stride, Fraction(1, self.f))

    def decode(self, frozen: Tree, z: jax.Array) -> jax.Array:
        return patchwise(lambda x: self.model.decode(frozen, x), z, self.patch, self.stride, self.f)

    def condition(self, params: Tree, frozen: Tree, batch: Batch) -> Cond:
        """As the model's. With batch["crop_tokens"] [B,P,2] the context is [B,P,L,D], one for each patch: the last two
        of batch["tokens"], the corners of the crop, are replaced by those of the patch. The null keeps its tokens.
        """
        kept = frozen.get("conditioner", params.get("conditioner"))

        def whole(batch: Batch) -> Cond:
            return self.conditioner.apply({"params": kept}, batch, partial(self.encode, frozen))

        cond = whole(batch)
        if "crop_tokens" not in batch:
            return cond
        tokens = batch["tokens"]
        null = jnp.all(tokens == self.conditioner.null(batch)["tokens"], axis=1, keepdims=True)

        def one(crop: jax.Array) -> jax.Array:
            replaced = jnp.where(null, tokens, jnp.concatenate([tokens[:, :-2], crop], axis=1))
            return whole(batch | {"tokens": replaced}).context

        contexts = jax.lax.map(one, jnp.moveaxis(batch["crop_tokens"], 1, 0))
        return Cond(jnp.moveaxis(contexts, 0, 1), cond.concat)

    def predict(self, params: Tree, z_t: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        def one(patch: tuple[jax.Array, jax.Array | None], context: jax.Array | None = cond.context) -> jax.Array:
            z_t, concat = patch
            return self.model.predict(params, z_t, t, Cond(context, concat))

        own = cond.context is not None and cond.context.ndim == 4
        each = jnp.moveaxis(cond.context, 1, 0) if own else None
        return patchwise(one, (z_t, cond.concat), self.patch, self.stride, each=each)


def invert_image(
    model: DiffusionModel,
    params: Tree,
    frozen: Tree,
    batch: Batch,
    image: jax.Array,
    timetable: Timetable,
    iterations: int = 3,
) -> jax.Array:
    """image [B,H,W,C] in [-1,1] -> z_T [B,h,w,c], from which ddim, eta 0, makes the image's reconstruction again.

    Under the conditions in `batch`, without guidance; see `starts.invert`.
    """
    denoise = denoiser(model, params, model.condition(params, frozen, batch))
    return starts.invert(denoise, model.encode(frozen, image), timetable, iterations)


def half_square(image: jax.Array, wanted: jax.Array) -> jax.Array:
    """||image - wanted||^2 / 2 [B] over all pixels: minus the log-likelihood of a Gaussian of variance 1."""
    return jnp.sum(jnp.square(image - wanted), axis=(1, 2, 3)) / 2


def perceptual(net: LPIPS, params: Tree) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """LPIPS as a distance for `matches`, times half the number of values of an image: `half_square` is a sum over
    them, so that one scale suits both better."""
    return lambda image, wanted: image[0].size / 2 * net.apply({"params": params}, image, wanted)


def matches(
    model: DiffusionModel,
    frozen: Tree,
    wanted: jax.Array,
    scale: float | jax.Array = 1.0,
    distance: Callable[[jax.Array, jax.Array], jax.Array] = half_square,
) -> Callable[[jax.Array], jax.Array]:
    """log_p of reconstruction guidance: clean latent [B,h,w,c] -> -scale * distance(T(decode(z)), wanted) [B].

    wanted: [B,h',w',C] in [-1,1], as large as the image or smaller. T, the paper's (appendix C): bicubic
    downsampling of the image to that size, with antialiasing. distance: (image, wanted) [B,h',w',C] -> [B], for
    instance `perceptual` in place of the default.
    """

    def log_p(z: jax.Array) -> jax.Array:
        image = model.decode(frozen, z)
        return -scale * distance(jax.image.resize(image, wanted.shape, "cubic"), wanted)

    return log_p
