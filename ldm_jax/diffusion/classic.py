"""Samplers of one step at a time, and PLMS: DDIM, DDPM, Euler, Heun. See samplers.py for how they are called.

Notation: a = alpha_bar now, a_prev = alpha_bar after the step, x0 = (z - sqrt(1-a) eps) / sqrt(a).
"""

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.loops import (
    Denoise,
    Loop,
    NoiseFn,
    batched,
    known_source,
    move,
    noise_source,
    sampler,
    steps_of,
    x0_of,
)
from ldm_jax.diffusion.timetable import MOST_SIGMA, Timetable


@sampler(draws_noise=True, takes_eta=True)
def ddim(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None,
    *,
    eta: float | jax.Array = 0.0,
    temperature: float | jax.Array = 1.0,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    noise_fn: NoiseFn | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """DDIM (Song et al. 2021, eq. 12). eta in [0, 1]: 0 deterministic, 1 as noisy as the ancestral sampler.

    At eta 0 it is also Euler's method for the probability flow. keys may be None when eta is the number 0.
    The mask is applied before each step, as in the original.
    """
    random = not (isinstance(eta, int | float) and eta == 0)
    noise = noise_source(noise_fn, keys, z_T, 0) if random else None
    known = known_source(mask, z_known, known_noise_fn, keys, z_T)

    def step(z, x):
        s, _ = x
        z = known(z, s)
        eps = denoise(z, batched(s.t, z))
        x0 = x0_of(z, eps, s.a)
        if noise is None:
            return move(z, eps, s.a, s.a_prev), x0
        sigma = eta * jnp.sqrt((1 - s.a_prev) / (1 - s.a) * (1 - s.a / s.a_prev))
        direction = jnp.sqrt(jnp.maximum(1 - s.a_prev - sigma**2, 0))  # rounding may leave it just below 0
        z = jnp.sqrt(s.a_prev) * x0 + direction * eps
        return z + sigma * temperature * noise(s.k), x0

    steps = steps_of(timetable)
    return Loop(z_T, step, (steps, steps.k))


@sampler(draws_noise=True)
def ddpm(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None,
    *,
    v_posterior: float | jax.Array = 0.0,
    temperature: float | jax.Array = 1.0,
    clip_x0: bool = False,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    noise_fn: NoiseFn | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Ancestral sampling from q(z_{t-1} | z_t, x0) (Ho et al. 2020, algorithm 2); meant for a full timetable.

    v_posterior mixes the variance between the posterior's (0) and beta (1). clip_x0 clips x0 to [-1, 1], for
    pixel models only. No noise is added in a step that ends at alpha_bar 1. On a shorter timetable beta is
    that of the whole stride. The mask is applied after each step at the level before it, as in the original.
    """
    noise = noise_source(noise_fn, keys, z_T, 0)
    known = known_source(mask, z_known, known_noise_fn, keys, z_T)

    def step(z, x):
        s, _ = x
        x0 = x0_of(z, denoise(z, batched(s.t, z)), s.a)
        if clip_x0:
            x0 = jnp.clip(x0, -1, 1)
        beta = 1 - s.a / s.a_prev
        mean = beta * jnp.sqrt(s.a_prev) / (1 - s.a) * x0 + (1 - s.a_prev) * jnp.sqrt(1 - beta) / (1 - s.a) * z
        variance = (1 - v_posterior) * beta * (1 - s.a_prev) / (1 - s.a) + v_posterior * beta
        sigma = jnp.where(s.a_prev < 1, jnp.sqrt(variance), 0.0)
        return known(mean + sigma * temperature * noise(s.k), s), x0

    steps = steps_of(timetable)
    return Loop(z_T, step, (steps, steps.k))


# Weights of eps and of the eps one, two, three steps ago, by evaluation. Row 0 tries the first step, row 1
# redoes it as Heun does, the others are Adams-Bashforth of order 2, 3 and 4.
_PLMS_WEIGHTS = (
    (1.0, 0.0, 0.0, 0.0),
    (1 / 2, 1 / 2, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@sampler(from_pure_noise=False)
def plms(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Pseudo linear multistep method (Liu et al. 2022): DDIM along an extrapolated eps, S + 1 evaluations.

    Evaluation j of the scan belongs to step max(j - 1, 0). Evaluation 1 looks at the end of the tried first
    step, at the second step's t (or again the first where there is only one), and is not remembered.
    Not for models that begin at alpha_bar 0: the first steps are then of very unequal size, its weights are for equal.
    """
    known = known_source(mask, z_known, known_noise_fn, keys, z_T)
    steps = steps_of(timetable)
    weights = jnp.asarray(_PLMS_WEIGHTS, float)
    number = jnp.arange(len(steps.t) + 1)
    entries = jax.tree.map(lambda x: x[jnp.maximum(number - 1, 0)], steps)
    second = steps.t[min(1, len(steps.t) - 1)]
    entries = entries._replace(t=entries.t.at[1].set(jnp.where(second < 0, steps.t[0], second)))

    def evaluate(carry, x):
        (z, base, history), (s, j) = carry, x
        redo = j == 1
        z = jnp.where(redo, z, known(z, s))
        base = jnp.where(redo, base, z)
        eps = denoise(z, batched(s.t, z))
        recent = jnp.stack([eps, *history])
        mixed = jnp.tensordot(weights[jnp.minimum(j, 4)], recent, 1, precision="highest")
        history = jnp.where(redo, history, recent[:3])
        return (move(base, mixed, s.a, s.a_prev), base, history), x0_of(base, mixed, s.a)

    return Loop((z_T, z_T, jnp.zeros((3, *z_T.shape), z_T.dtype)), evaluate, (entries, number))


@sampler(spacing="karras")
def euler(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Euler's method for the probability flow (Karras et al. 2022, algorithm 1 without its second half).

    z / sqrt(a) is a function of sigma = sqrt((1-a) / a) whose slope is eps. One step of it is a step of `ddim` with
    eta 0; the spacing is Karras et al.'s. Of a flow model it is the straight step z + (t' - t) v.
    """
    return ddim.loop(denoise, z_T, timetable, keys, mask=mask, z_known=z_known, known_noise_fn=known_noise_fn)


@sampler(draws_noise=True, spacing="karras")
def euler_ancestral(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None,
    *,
    eta: float | jax.Array = 1.0,
    temperature: float | jax.Array = 1.0,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    noise_fn: NoiseFn | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Euler's method to below the next level, then noise up to it (ancestral sampling; Song et al. 2021, appendix F).

    With sigma = sqrt((1-a) / a), of the variance sigma'^2 at the next level the part
        up^2 = eta^2 sigma'^2 (sigma^2 - sigma'^2) / sigma^2
    is new noise. One step of it is a step of `ddim` with the same eta, here 1; the spacing is Karras et al.'s. eta 0 is
    `euler`.
    """
    return ddim.loop(
        denoise, z_T, timetable, keys, eta=eta, temperature=temperature, mask=mask, z_known=z_known,
        noise_fn=noise_fn, known_noise_fn=known_noise_fn,
    )  # fmt: skip


@sampler(spacing="log_snr")
def heun(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Heun's second-order method (Karras et al. 2022, algorithm 1), 2 S - 1 evaluations.

    Works on z / sqrt(a) as a function of sigma = sqrt((1-a) / a), of which eps is the slope. The last step is one of
    Euler's, as there is no later t to evaluate at; so is one from a sigma above MOST_SIGMA (of pure noise it is
    infinite), where a step is far too long for the mean of two slopes.
    """
    known = known_source(mask, z_known, known_noise_fn, keys, z_T)
    steps = steps_of(timetable)
    following = jnp.append(steps.t[1:], -1)
    entries = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), steps)
    entries = entries._replace(t=jnp.stack([steps.t, following], axis=1).ravel())

    def evaluate(carry, x):
        (z, base, before), (s, j) = carry, x
        redo = j % 2 == 1
        z = jnp.where(redo, z, known(z, s))
        base = jnp.where(redo, base, z)
        eps = denoise(z, batched(s.t, z))
        mixed = jnp.where(redo, jnp.where(s.a * (1 + MOST_SIGMA**2) < 1, before, (before + eps) / 2), eps)
        # `mixed` equals eps where it is read again.
        return (move(base, mixed, s.a, s.a_prev), base, mixed), x0_of(base, mixed, s.a)

    return Loop((z_T, z_T, jnp.zeros_like(z_T)), evaluate, (entries, jnp.arange(len(entries.t))))
