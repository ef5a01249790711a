"""Conditions -> denoiser -> the sampler's loop. Image i depends on (seed, i) alone, not on the batch."""

from collections.abc import Callable
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from ldm_jax.arrays import Array
from ldm_jax.conditions.base import Batch, Cond, ConditionNetwork
from ldm_jax.diffusion.guidance import (
    Denoise,
    autoguidance,
    classifier_free_guidance,
    classifier_guidance,
    composed_guidance,
    reconstruction_guidance,
    within,
)
from ldm_jax.diffusion.samplers import Loop, get_sampler
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.diffusion.timetable import Timetable
from ldm_jax.keys import keys_of, purpose_key
from ldm_jax.ldm import Image, Keys, Latent

Tree = Any
Guidance = float | Float[Array, ""] | Float[Array, " scales"]
GUIDE_LIMIT = 1.0  # of reconstruction guidance: how far it may move eps, as a multiple of its norm


@runtime_checkable
class DiffusionModel(Protocol):
    """What sampling needs of a model: `LDM`, or one that sees large images in patches (editing.py)."""

    schedule: NoiseSchedule
    conditioner: ConditionNetwork

    def encode(self, frozen: Tree, image: Image, keys: Keys | None = None) -> Latent: ...
    def decode(self, frozen: Tree, z: Latent) -> Image: ...
    def condition(self, params: Tree, frozen: Tree, batch: Batch) -> Cond: ...
    def predict(self, params: Tree, z_t: Latent, t: Int[Array, " B"], cond: Cond) -> Latent: ...


def image_keys(seed: int | Int[Array, ""], indices: Int[Array, " B"]) -> Keys:
    """Keys [B] of the images `indices` [B] (int32) of `seed`."""
    return keys_of(purpose_key(seed, "generate"), indices)


def conditions(
    model: DiffusionModel, params: Tree, frozen: Tree, batch: Batch, guidance: Guidance | None
) -> tuple[Cond, Cond | tuple[Cond, ...] | None]:
    """(condition, null condition) of a batch; the null condition only for classifier-free guidance.

    guidance with a scale for each of the joined conditions: the null condition, then the first alone, the first two ...
    ValueError for guidance of a model that has no value for "no condition".
    """
    cond = model.condition(params, frozen, batch)
    if guidance is None:
        return cond, None
    if jnp.ndim(guidance):
        nulls, found = model.conditioner.part_nulls(batch), []
        if len(nulls) != len(guidance):
            raise ValueError(f"{len(guidance)} guidance scales for {len(nulls)} conditions")
        for i in range(len(nulls)):
            without = batch | reduce(dict.__or__, nulls[i:])
            found.append(model.condition(params, frozen, without))
        return cond, tuple(found)
    return cond, model.condition(params, frozen, batch | model.conditioner.null(batch))


def denoiser(
    model: DiffusionModel,
    params: Tree,
    cond: Cond,
    null: Cond | tuple[Cond, ...] | None = None,
    guidance: Guidance | None = None,
    log_p: Callable[[jax.Array], jax.Array] | None = None,
    classifier: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    rescale: float | Float[Array, ""] | None = None,
    interval: Float[Array, "2"] | None = None,
    weaker: Denoise | None = None,
    weaker_scale: float | Float[Array, ""] = 1.0,
) -> Denoise:
    """(z_t [B,h,w,c], t [B]) -> eps [B,h,w,c] for samplers, with every guidance that is asked for.

    guidance: scale of classifier-free guidance, away from the condition `null`, or a scale for each of several
    conditions (composed_guidance), with `null` as `conditions` gives it; None = without. rescale: of it, against
    over-saturation (guidance.py), on what the network predicts. weaker: autoguidance away from this one, with the scale
    weaker_scale. interval: these two are applied at low < sigma <= high alone. log_p: reconstruction guidance by this
    function of the clean latent, [B,h,w,c] -> [B]. classifier: guidance by this function of the noised latent,
    (z_t, t) -> [B], its scale included.
    """

    def output(z_t: Latent, t: Int[Array, " B"], cond: Cond) -> Latent:
        return model.predict(params, model.schedule.network_input(z_t, t), t, cond)

    def to_eps(answer: Latent, z_t: Latent, t: Int[Array, " B"]) -> Latent:
        return model.schedule.to_eps(answer, model.schedule.network_input(z_t, t), t)

    def eps(z_t: Latent, t: Int[Array, " B"], cond: Cond) -> Latent:
        return to_eps(output(z_t, t, cond), z_t, t)

    def limited(scale):
        return scale if interval is None else within(scale, interval, model.schedule)

    weaker_scale = limited(weaker_scale)
    predict = eps if rescale is None else output  # it is the output, be it eps, x0 or v, whose spread is brought back
    if guidance is not None and jnp.ndim(guidance):
        scales = [limited(guidance[i]) for i in range(len(guidance))]
        guided = composed_guidance(predict, cond, null, scales, rescale)
    else:
        scale = guidance if guidance is None else limited(guidance)
        guided = classifier_free_guidance(predict, cond, null, scale, rescale)
    denoise = guided if rescale is None else lambda z_t, t: to_eps(guided(z_t, t), z_t, t)
    if weaker is not None:
        denoise = autoguidance(denoise, weaker, weaker_scale)
    if log_p is not None:
        denoise = reconstruction_guidance(denoise, log_p, model.schedule, GUIDE_LIMIT)
    if classifier is not None:
        denoise = classifier_guidance(denoise, classifier, model.schedule)
    return denoise


def make_loop(
    sampler: str,
    denoise: Denoise,
    z_T: Latent,
    timetable: Timetable,
    keys: Keys,
    eta: float | Float[Array, ""] = 0.0,
) -> Loop:
    """The sampler's loop; eta is given to samplers that take it. ValueError for an unknown sampler."""
    record = get_sampler(sampler)
    options = {"eta": eta} if record.takes_eta else {}
    return record.loop(denoise, z_T, timetable, keys, **options)


def valid_entries(loop: Loop) -> Int[Array, ""]:
    """Number of the loop's entries that are not padding, int32 []; padding comes last."""
    return jnp.sum(loop.entries[0].t >= 0, dtype=jnp.int32)
