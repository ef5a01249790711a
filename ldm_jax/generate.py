"""Noise to latents: denoiser -> sampler -> z. Image i depends on (seed, i) alone, not on the batch."""

from collections.abc import Callable
from typing import Any

import jax

from ldm_jax.diffusion.guidance import classified, steered
from ldm_jax.diffusion.samplers import SAMPLERS, start_noise
from ldm_jax.diffusion.timetable import Timetable
from ldm_jax.keys import keys_of, purpose_key
from ldm_jax.ldm import LDM

Tree = Any
GUIDE_LIMIT = 1.0  # of `steered`


def image_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """Keys [B] of the images `indices` [B] (int32) of `seed`."""
    return keys_of(purpose_key(seed, "generate"), indices)


def sample_latents(
    ldm: LDM,
    params: Tree,
    frozen: Tree,
    batch: dict[str, jax.Array],
    keys: jax.Array,
    latent_shape: tuple[int, int, int],
    timetable: Timetable,
    eta: float | jax.Array = 0.0,
    sampler: str = "ddim",
    guidance: float | jax.Array | None = None,
    z_T: jax.Array | None = None,
    log_p: Callable[[jax.Array], jax.Array] | None = None,
    classifier: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Samples z [B,h,w,c] for keys [B] under the conditions in `batch` (fields [B,...]; {} without conditions).

    `eta` goes to the sampler "ddim". `guidance`: scale of classifier-free guidance, None = without (1 is the same
    at twice the price). These and the timetable may be traced. `z_T` [B,h,w,c]: where to start, at the timetable's
    first noise level, in place of noise of the keys (diffusion/starts.py). `log_p`: post-hoc guidance by this function
    of the clean latent, [B,h,w,c] -> [B]; `classifier`: guidance by this function of the noised latent,
    (z_t [B,h,w,c], t [B]) -> [B], its scale included (diffusion/guidance.py, `steered` and `classified`).
    Raises ValueError for an unknown sampler, naming the known ones, and for guidance of a model without a null.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")
    cond, null = ldm.condition(params, frozen, batch), None
    if guidance is not None:
        null = ldm.condition(params, frozen, batch | ldm.conditioner.null(batch))
    denoise = ldm.denoiser(params, cond, null, guidance)
    if log_p is not None:
        denoise = steered(denoise, log_p, ldm.schedule, GUIDE_LIMIT)
    if classifier is not None:
        denoise = classified(denoise, classifier, ldm.schedule)
    if z_T is None:
        z_T = start_noise(keys, latent_shape)
    options = {"eta": eta} if sampler == "ddim" else {}
    return SAMPLERS[sampler](denoise, z_T, timetable, keys, **options)
