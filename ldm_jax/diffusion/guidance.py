"""Guidance: functions that make a `Denoise`, which any sampler takes.

`classifier_free_guidance` (Ho and Salimans 2022), by the condition that the network was trained with:
    eps = eps_null + s (eps_cond - eps_null), scale s:  0 = unconditional, 1 = off (conditional), above 1 = guided.
`composed_guidance`, by several conditions with a scale each (Brooks et al. 2023, arXiv 2211.09800, equation 3); eps_i
is that under the first i conditions:
    eps = eps_0 + s_1 (eps_1 - eps_0) + s_2 (eps_2 - eps_1) + ...
`autoguidance`, by a weaker model under the same condition (Karras et al. 2024, arXiv 2406.02507), scale s:
    eps = eps_weak + s (eps - eps_weak)
`classifier_guidance`, by a classifier of noised latents (Dhariwal and Nichol 2021, algorithm 2), scale s:
    eps = eps(z_t) - s sqrt(1 - abar) grad_{z_t} log p(y | z_t, t)
`reconstruction_guidance` (LDM paper, appendix C), by any differentiable log p(y | z) of the clean latent:
    eps = eps(z_t) - sqrt(1 - abar) grad_{z_t} log p(y | z(z_t)),  z(z_t) = (z_t - sqrt(1 - abar) eps(z_t)) / sqrt(abar)
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.diffusion.schedule import Latents, NoiseSchedule, PerSample, Steps

Scale = float | Float[Array, ""] | PerSample
ScaleAt = Callable[[Steps], PerSample]  # of the step


@runtime_checkable
class Denoise(Protocol):
    """z_t [B,...] and its training steps t [B] -> the noise eps in it, [B,...]."""

    def __call__(self, z_t: Latents, t: Steps, /) -> Latents: ...


@runtime_checkable
class DenoiseWith(Protocol):
    """The same under a condition."""

    def __call__(self, z_t: Latents, t: Steps, cond: Any, /) -> Latents: ...


@runtime_checkable
class LogP(Protocol):
    """log p(y | z_t, t) [B] of noised latents z_t [B,...] at steps t [B], in nats, without mixing samples."""

    def __call__(self, z_t: Latents, t: Steps, /) -> PerSample: ...


@runtime_checkable
class CleanLogP(Protocol):
    """log p(y | z) [B] of clean latents z [B,...], in nats, without mixing samples."""

    def __call__(self, z: Latents, /) -> PerSample: ...


def classifier_free_guidance(
    denoise_with: DenoiseWith,
    cond: Any,
    null: Any = None,
    scale: Scale | ScaleAt | None = None,
    rescale: Scale | None = None,
) -> Denoise:
    """(z_t [B,...], t [B]) -> eps [B,...] under a condition.

    denoise_with: (z_t, t, cond) -> eps, or x0 or v; then so is the result. Only rescale tells them apart.
    cond, null: pytrees of arrays [B,...] of the same structure and shapes, the condition and its absence.
    scale: guidance scale, a number or [B], may be traced, or a function of t such as `within` makes. None leaves
        guidance out: null is not used and the network sees the batch once. Any number doubles the batch (null half
        first), even 1.
    rescale: phi in [0, 1] of Lin et al. 2023 (arXiv 2305.08891, eq. 15-16): moves each sample's standard
        deviation back to that of eps_cond, against over-saturation at large scales. None leaves it out. It is meant for
        what the network predicts: at high noise the eps of a network that predicts v or x0 has the spread of z_t.
    """
    if scale is None:
        if rescale is not None:
            raise ValueError("guidance rescale without a guidance scale: give a scale or leave out rescale")

        def unguided(z: Latents, t: Steps) -> Latents:
            return denoise_with(z, t, cond)

        return unguided
    _check_alike(cond, null)
    both = jax.tree.map(lambda n, c: jnp.concatenate([n, c]), null, cond)

    def denoise(z: Latents, t: Steps) -> Latents:
        eps = denoise_with(jnp.concatenate([z, z]), jnp.concatenate([t, t]), both)
        eps_null, eps_cond = jnp.split(eps, 2)
        mixed = eps_null + _per_sample(_at(scale, t), z) * (eps_cond - eps_null)
        return mixed if rescale is None else _rescaled(mixed, eps_cond, rescale)

    return denoise


def composed_guidance(
    denoise_with: DenoiseWith,
    cond: Any,
    nulls: Sequence[Any],
    scales: Sequence[Scale | ScaleAt],
    rescale: Scale | None = None,
) -> Denoise:
    """(z_t [B,...], t [B]) -> eps [B,...] under several conditions, each with its scale.

    nulls: what the network gets without all conditions, then with the first, then with the first two, ...; as many as
    scales. cond: all of them. Of the same structure and shapes. The network sees all in one batch, one more than there
    are conditions. scales, rescale: as in `classifier_free_guidance`, which this is for one condition.
    """
    if len(nulls) != len(scales):
        raise ValueError(f"{len(scales)} guidance scales need as many null conditions, not {len(nulls)}")
    for null in nulls:
        _check_alike(cond, null)
    every = jax.tree.map(lambda *parts: jnp.concatenate(parts), *nulls, cond)
    number = len(nulls) + 1

    def denoise(z: Latents, t: Steps) -> Latents:
        eps = denoise_with(jnp.concatenate([z] * number), jnp.concatenate([t] * number), every)
        steps = jnp.split(eps, number)
        mixed = steps[0]
        for scale, before, after in zip(scales, steps, steps[1:]):
            mixed = mixed + _per_sample(_at(scale, t), z) * (after - before)
        return mixed if rescale is None else _rescaled(mixed, steps[-1], rescale)

    return denoise


def autoguidance(denoise: Denoise, weaker: Denoise, scale: Scale | ScaleAt) -> Denoise:
    """`denoise` moved away from what a weaker model of the same latents says: smaller, or trained less.

    scale: as in `classifier_free_guidance`; 1 = off. Each of the two networks sees the batch once.
    """

    def moved(z: Latents, t: Steps) -> Latents:
        eps_weak = weaker(z, t)
        return eps_weak + _per_sample(_at(scale, t), z) * (denoise(z, t) - eps_weak)

    return moved


def within(scale: Scale, interval: Float[Array, "2"] | tuple[float, float], schedule: NoiseSchedule) -> ScaleAt:
    """t [B] -> `scale` where low < sigma <= high, and 1 elsewhere, which is off (Kynkaanniemi et al. 2024, arXiv
    2404.07724). interval: (low, high) of sigma = noise_t / signal_t; may be traced."""

    def at(t: Steps) -> PerSample:
        sigma = schedule.sigma(t)
        return jnp.where((interval[0] < sigma) & (sigma <= interval[1]), scale, 1.0)

    return at


def classifier_guidance(denoise: Denoise, log_p: LogP, schedule: NoiseSchedule) -> Denoise:
    """Classifier guidance: `denoise` moved along the gradient of log_p, a classifier of noised latents.

    log_p: times the scale of the guidance. With the exact eps, the
    exact log p(y | z_t, t) and scale 1 this is the exact eps of class y. Costs a forward and a backward pass of log_p.
    """

    def moved(z: Latents, t: Steps) -> Latents:
        a = _per_sample(schedule.level(t), z)
        gradient = jax.grad(lambda z: jnp.sum(log_p(z, t)))(z)
        return denoise(z, t) - jnp.sqrt(1 - a) * gradient

    return moved


def reconstruction_guidance(
    denoise: Denoise, log_p: CleanLogP, schedule: NoiseSchedule, limit: float | None = None
) -> Denoise:
    """Reconstruction guidance: `denoise` moved along the gradient of log_p at the clean latent that it expects.

    log_p: its scale is the scale of the guidance.
    The paper prints + where this has -: the score is -eps / sqrt(1 - alpha_bar), so minus is what raises log_p
    (Dhariwal and Nichol 2021, algorithm 2). Costs a backward pass through the network and log_p.
    limit: a sample's eps is moved by at most so many times its own norm (not in the paper). At the noisy end an error
    of eps is magnified by 1 / sqrt(alpha_bar), about 100, in the expected latent, and again in the gradient; without
    a limit a few such steps throw the sample far off.
    """

    def moved(z: Latents, t: Steps) -> Latents:
        a = _per_sample(schedule.level(t), z)

        def total(z: Latents) -> tuple[Float[Array, ""], Latents]:
            eps = denoise(z, t)
            return jnp.sum(log_p((z - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a))), eps

        gradient, eps = jax.grad(total, has_aux=True)(z)
        move = jnp.sqrt(1 - a) * gradient
        if limit is not None:
            lengths = [jnp.sqrt(jnp.sum(jnp.square(x), range(1, z.ndim), keepdims=True)) for x in (eps, move)]
            move = move * jnp.minimum(1.0, limit * lengths[0] / jnp.maximum(lengths[1], 1e-20))
        return eps - move

    return moved


def _rescaled(mixed: Latents, conditional: Latents, rescale: Scale) -> Latents:
    axes = tuple(range(1, mixed.ndim))
    factor = jnp.std(conditional, axes, keepdims=True) / jnp.std(mixed, axes, keepdims=True)
    phi = _per_sample(rescale, mixed)
    return phi * factor * mixed + (1 - phi) * mixed


def _at(scale: Scale | ScaleAt, t: Steps) -> Scale:
    return scale(t) if callable(scale) else scale


def _per_sample(value: Scale, like: Latents) -> Array:
    """A number, or [B] shaped [B,1,...] to broadcast against `like`."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (like.ndim - 1)) if value.ndim else value


def _check_alike(cond: Any, null: Any) -> None:
    """ValueError where the null condition is not shaped like the condition."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (cond, null)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"a guidance scale needs a null condition of the condition's shapes: condition {shapes[0]}, "
            f"null {shapes[1]}; pass scale=None for a model without a null condition"
        )
