"""Where a sampler starts, other than in pure noise: a noised latent, an inverted one, a point between two.

A sampler runs whatever timetable it is given, so "start from a picture" is the last part of a timetable and a latent
at the noise level where that part begins; the samplers know nothing of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ldm_jax.diffusion.samplers import start_noise
from ldm_jax.diffusion.timetable import Timetable

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def shortened(timetable: Timetable, strength: float) -> Timetable:
    """The last `strength` (in (0,1]) of a timetable's [S] steps, rounded, at least one. Not for a padded one.

    1 is the whole timetable; the smaller, the less noise there is to begin with and the more is kept.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength} must lie above 0 (keep all) and at most at 1 (keep nothing)")
    steps = len(timetable.t)
    first = steps - max(round(strength * steps), 1)
    return Timetable(*(entries[first:] for entries in timetable))


def noised(z: jax.Array, keys: jax.Array, timetable: Timetable) -> jax.Array:
    """z [B,...], clean, with noise of keys [B] up to the level where the timetable begins: a draw from q(z_t | z)."""
    a = jnp.asarray(timetable.alpha_bar, jnp.float32)[0]
    return jnp.sqrt(a) * z + jnp.sqrt(1 - a) * start_noise(keys, z.shape[1:])


def invert(denoise: Denoise, z: jax.Array, timetable: Timetable, iterations: int = 3) -> jax.Array:
    """z [B,...], clean -> the z_T [B,...] from which `ddim` with eta 0 comes back to z along the same timetable.

    Each step solves ddim_step(z_t) = z_prev for z_t, whose eps must be known at z_t itself:
        z_t = sqrt(a / a_prev) (z_prev - sqrt(1-a_prev) eps(z_t, t)) + sqrt(1-a) eps(z_t, t)
    by `iterations` fixed-point iterations that begin with eps at z_prev. 1 is plain DDIM inversion (Song et al.
    2021, section 4.3), whose error grows with the step; each further one costs as much as sampling and divides the
    error (Pan et al. 2023, arXiv 2309.04907). Without classifier-free guidance: its large scales do not converge.
    """
    if iterations < 1:
        raise ValueError(f"inversion needs at least 1 iteration, got {iterations}")
    tables = jnp.asarray(timetable.t, jnp.int32), *(jnp.asarray(x, jnp.float32) for x in timetable[1:])

    def step(z: jax.Array, entry) -> tuple[jax.Array, None]:
        t, a, a_prev = entry

        def closer(_, z_t: jax.Array) -> jax.Array:
            eps = denoise(z_t, jnp.full(z.shape[:1], t))
            return jnp.sqrt(a / a_prev) * (z - jnp.sqrt(1 - a_prev) * eps) + jnp.sqrt(1 - a) * eps

        return lax.cond(t >= 0, lambda: lax.fori_loop(0, iterations, closer, z), lambda: z), None

    return lax.scan(step, z, tables, reverse=True)[0]


def slerp(one: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    """From `one` to `other` [h,w,c] along the great circle: [N,h,w,c] for shares [N] in [0,1] (0 = one, 1 = other).

    Straight lines between Gaussian noises pass through points too close to the mean; this keeps the norm. Where the
    two point the same way it is the straight line.
    """
    share = jnp.asarray(share, jnp.float32).reshape(-1, *(1,) * one.ndim)
    cosine = jnp.vdot(one, other) / (jnp.linalg.norm(one) * jnp.linalg.norm(other))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    straight = jnp.sin(angle) < 1e-4
    sine = jnp.where(straight, 1, jnp.sin(angle))
    of_one = jnp.where(straight, 1 - share, jnp.sin((1 - share) * angle) / sine)
    of_other = jnp.where(straight, share, jnp.sin(share * angle) / sine)
    return of_one * one + of_other * other
