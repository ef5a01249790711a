"""Samplers: from noise to latents, z_T -> z_0 along a timetable.

Every sampler is called as `(denoise, z_T, timetable, keys, *, ...) -> z_0`, with
    denoise:    (z_t [B,...], t [B] int32) -> eps [B,...], whatever the network predicts; holds the guidance
    z_T:        [B,...] float32 standard normal, for instance `start_noise(keys, shape)`
    timetable:  Timetable [S], possibly padded; may be traced
    keys:       [B] jax keys, one per sample. Step k of sample i draws normal(fold_in(keys[i], k)), so a
                sample does not depend on the batch it is in. May be None where no noise is drawn.
    mask, z_known: inpainting. Where mask [B,...,1] is 1 the latent is held to z_known [B,...] noised to the
                current level; 0 is generated.
    noise_fn, known_noise_fn: k -> [B,...], in place of the keyed noise of the step and of z_known.
Numbers such as eta may be traced, so that another value compiles nothing.

A new sampler is one function, decorated with `@sampler(...)`. It takes the arguments above and returns a `Loop`: what
is carried from step to step, one step, and the entries to step over. The record `Sampler` runs the loop, all of it
(`__call__`) or some entries at a time (`advance`), so that progress can be shown. The body of the loop holds the
network once, also where a step evaluates it twice; padding entries are skipped.

The samplers are in classic.py and exponential.py, what they are made of is in loops.py.
"""

from ldm_jax.diffusion.classic import ddim, ddpm, euler, euler_ancestral, heun, plms
from ldm_jax.diffusion.exponential import dpm_solver_pp_2m, dpm_solver_pp_2m_sde, unipc_2, unipc_3
from ldm_jax.diffusion.loops import (
    SAMPLERS,
    Denoise,
    Loop,
    NoiseFn,
    Sampler,
    Step,
    advance,
    get_sampler,
    latent,
    names_for,
    sampler,
    start_noise,
    steps_of,
)

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Loop",
    "NoiseFn",
    "Sampler",
    "Step",
    "advance",
    "ddim",
    "ddpm",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_2m_sde",
    "euler",
    "euler_ancestral",
    "get_sampler",
    "heun",
    "latent",
    "names_for",
    "plms",
    "sampler",
    "start_noise",
    "steps_of",
    "unipc_2",
    "unipc_3",
]
