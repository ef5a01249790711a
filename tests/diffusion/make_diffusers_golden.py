"""Makes diffusers_samplers.npz beside it; needs torch and diffusers, unlike the tests.

    python tests/diffusion/make_diffusers_golden.py

Trajectories of diffusers' schedulers on a closed-form denoiser, the exact noise of a mixture of Gaussians (mixture.py),
over the levels of the scaled-linear schedule. The file holds: t [S] the training steps; z [N,1] the start; noise
[S,N,1]; and for each sampler by its name here [S,N,1], the latent after each step, its variance preserved.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.diffusion import mixture  # noqa: E402

STEPS = 12
SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, num_train_timesteps=1000)
DPM = dict(solver_order=2, solver_type="midpoint", final_sigmas_type="zero")
SCHEDULERS = {
    "euler": EulerDiscreteScheduler(**SCHEDULE),
    "euler_ancestral": EulerAncestralDiscreteScheduler(**SCHEDULE),
    "heun": HeunDiscreteScheduler(**SCHEDULE),
    "dpm_solver_pp_2m": DPMSolverMultistepScheduler(**SCHEDULE, **DPM, algorithm_type="dpmsolver++"),
    "dpm_solver_pp_2m_sde": DPMSolverMultistepScheduler(**SCHEDULE, **DPM, algorithm_type="sde-dpmsolver++"),
    "unipc_2": UniPCMultistepScheduler(**SCHEDULE, solver_order=2, solver_type="bh2", final_sigmas_type="zero"),
    "unipc_3": UniPCMultistepScheduler(**SCHEDULE, solver_order=3, solver_type="bh2", final_sigmas_type="zero"),
}
OF_SIGMA = ("euler", "euler_ancestral", "heun")  # their latent is z / sqrt(alpha_bar)


def main():
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    t = 999 - np.arange(STEPS) * 999 // (STEPS - 1)
    levels = np.append(alpha_bar[t], 1.0)
    rng = np.random.default_rng(0)
    z, noise = rng.standard_normal((16, 1)), rng.standard_normal((STEPS, 16, 1))
    found = {"t": t, "z": z, "noise": noise}
    for name, scheduler in SCHEDULERS.items():
        found[name] = trajectory(name, scheduler, z, noise, t, levels)
    np.savez_compressed(HERE / "diffusers_samplers.npz", **{k: np.asarray(v, np.float64) for k, v in found.items()})


def trajectory(name, scheduler, z, noise, t, levels):
    """[S,N,1]: the latent after each step."""
    draws, sigmas = iter(torch.tensor(noise)), np.sqrt(1 / levels - 1)
    for module in (scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete):
        module.randn_tensor = lambda *_, **__: next(draws)
    scheduler.set_timesteps(len(t))
    visited = np.arange(len(t))  # the level of each evaluation
    if name == "heun":  # all but the first level twice: at the end of a step and at the beginning of the next
        visited = np.append(0, np.repeat(visited[1:], 2))
        sigmas = np.append(sigmas[visited], sigmas[-1])
    scheduler.timesteps, scheduler.sigmas = torch.tensor(t[visited] * 1.0), torch.tensor(sigmas)
    scheduler._step_index = 0
    root = np.sqrt(levels) if name in OF_SIGMA else np.ones(len(levels))
    x, after = torch.tensor(z / root[0]), []
    for i, k in enumerate(visited):
        eps = mixture.eps_at(x.numpy() * root[k], levels[k])
        x = scheduler.step(torch.tensor(eps), scheduler.timesteps[i], x).prev_sample.to(torch.float64)
        if name != "heun" or i % 2 or i + 1 == len(visited):  # the end of a step
            after.append(x.numpy() * root[len(after) + 1])
    return np.stack(after)


if __name__ == "__main__":
    main()
