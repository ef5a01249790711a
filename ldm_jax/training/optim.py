"""Learning rates, optimisers and the moving averages, each a pure function of the step.

The learning rate is a function of the step (so that it can be logged) that gives the FINAL rate: nothing
scales it by batch size or devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_jax.errors import ConfigError

Tree = Any
Schedule = Callable[[jax.Array | int], jax.Array]

SCHEDULES = ("constant", "linear_warmup", "linear", "cosine")
OPTIMIZERS = ("adam", "adamw")


def learning_rate(
    schedule: str,
    peak: float,
    *,
    warmup_steps: int = 0,
    total_steps: int = 0,
    warmup_fraction: float = 0.0,
    final_fraction: float = 0.0,
) -> Schedule:
    """step -> learning rate, float32; step counts from 0 (the rate of the first update is that of step 0).

    "constant": `peak`. "linear_warmup": from `warmup_fraction * peak` at step 0 linearly to `peak` at
    `warmup_steps`, then `peak`. "cosine": the same warm-up, then a half cosine that reaches
    `final_fraction * peak` at `total_steps` and stays there. "linear": the same warm-up, then the straight line
    from `peak` at step 0 to `final_fraction * peak` at `total_steps` (so it drops a little where the warm-up ends,
    as the original's does). `warmup_fraction` 0 gives the first step a
    rate of 0; the original's churches recipe has 1e-6, its inpainting recipe 0.01.
    Raises ConfigError for an unknown schedule or for a warm-up that does not end before `total_steps`.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule={schedule!r} is not one of {', '.join(SCHEDULES)}")
    if schedule in ("linear", "cosine") and warmup_steps >= total_steps:
        raise ConfigError(
            f"{schedule}: warmup_steps={warmup_steps} is not less than total_steps={total_steps}; "
            "lower --config.optim.warmup_steps"
        )

    def rate(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        if schedule == "constant":
            return jnp.full_like(step, peak)
        done = jnp.clip(step / max(warmup_steps, 1), 0.0, 1.0) if warmup_steps else jnp.ones_like(step)
        value = peak * (warmup_fraction + (1.0 - warmup_fraction) * done)
        if schedule == "linear_warmup":
            return value
        if schedule == "cosine":
            t = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
            share = 0.5 * (1.0 + jnp.cos(jnp.pi * t))
        else:
            share = 1.0 - jnp.clip(step / total_steps, 0.0, 1.0)
        falling = peak * (final_fraction + (1.0 - final_fraction) * share)
        return jnp.where(step < warmup_steps, value, falling)

    return rate


def make_optimizer(
    name: str,
    rate: Schedule | float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """ "adam" or "adamw" with gradients clipped to the global norm `clip_norm` first (0 = not).

    The decay of "adamw" is decoupled and acts on all parameters, as PyTorch's default does.
    Raises ConfigError for an unknown name, or for weight decay with "adam", which has none.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"optimizer name={name!r} is not one of {', '.join(OPTIMIZERS)}")
    if name == "adam" and weight_decay:
        raise ConfigError(f"weight_decay={weight_decay} has no effect with adam; set it to 0 or use adamw")
    if name == "adam":
        update = optax.adam(rate, b1, b2, eps)
    else:
        update = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), update) if clip_norm else update


def ema_decay(step: jax.Array | int, decay: float, warmup: bool = True) -> jax.Array:
    """min(decay, (1 + n) / (10 + n)) with warm-up, else `decay`; step n: updates done, 1 after the first."""
    n = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + n) / (10 + n)) if warmup else jnp.full_like(n, decay)


def ema_update(ema: Tree, params: Tree, step: jax.Array | int, decay: float, warmup: bool = True) -> Tree:
    """The moving average after `step` updates (1 after the first): ema + (1 - d) (params - ema), float32.

    At step 0 nothing is averaged yet: call it after the update, with the new number of steps.
    """
    rest = 1.0 - ema_decay(step, decay, warmup)
    return jax.tree.map(lambda e, p: e + rest * (p.astype(e.dtype) - e), ema, params)


LONGEST = 12**-0.5  # sigma_rel of the power 0, the plain mean of all steps


def power_of(sigma_rel: float) -> float:
    """The power gamma above 0 whose average has the relative width `sigma_rel`: the standard deviation of its weights
    as a share of the training so far (Karras et al. 2024, arXiv 2312.02696, eq. 126 and algorithm 2):

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    ConfigError unless 0 < sigma_rel < 0.2887.
    """
    if not 0 < sigma_rel < LONGEST:
        raise ConfigError(f"sigma_rel={sigma_rel} must lie between 0 and {LONGEST:.4f}, for example 0.05 or 0.10")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_update(ema: Tree, params: Tree, step: jax.Array | int, gamma: float) -> Tree:
    """The average of all parameters so far, those after step n with a weight that grows as n^gamma, after `step`
    updates (1 after the first): ema + (1 - b) (params - ema), b = (1 - 1/step)^(gamma + 1), float32 (eq. 2)."""
    n = jnp.asarray(step, jnp.float32)
    rest = -jnp.expm1((gamma + 1) * jnp.log1p(-1 / n))  # exact where b is near 1
    return jax.tree.map(lambda e, p: e + rest * (p.astype(e.dtype) - e), ema, params)
