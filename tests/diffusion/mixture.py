"""A mixture of Gaussians in one dimension, whose noise and flow are known: for tests of samplers."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.timetable import Timetable

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.25, 0.2])
MEAN = float(WEIGHTS @ MEANS)
VARIANCE = float(WEIGHTS @ (STDS**2 + MEANS**2) - MEAN**2)


def eps_at(z, a):
    """The exact noise in z (any shape) at level a: -sqrt(1 - a) times the score of the noised mixture."""
    xp = jnp if isinstance(z, jax.Array) else np
    means, variances = np.sqrt(a) * MEANS if xp is np else jnp.sqrt(a) * MEANS, a * STDS**2 + 1 - a
    away = (z[..., None] - means) / variances
    log = -0.5 * away * (z[..., None] - means) - 0.5 * xp.log(variances) + np.log(WEIGHTS)
    share = xp.exp(log - log.max(-1, keepdims=True))
    score = -(share * away).sum(-1) / share.sum(-1)
    return xp.sqrt(1 - a) * -score


def levels(first: float, last: float, steps: int) -> np.ndarray:
    """alpha_bar [steps + 1], evenly spread in lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)) = first .. last."""
    return 1 / (1 + np.exp(-2 * np.linspace(first, last, steps + 1)))


def timetable_of(alpha_bar: np.ndarray) -> Timetable:
    """From alpha_bar[0] over each level to the last; step t = 0, 1, ... is the number of the level."""
    return Timetable(np.arange(len(alpha_bar) - 1, dtype=np.int32), alpha_bar[:-1], alpha_bar[1:])


def denoiser(alpha_bar: np.ndarray):
    """The exact Denoise for `timetable_of(alpha_bar)`."""
    return lambda z, t: eps_at(z, jnp.asarray(alpha_bar, float)[t[0]])


def flow(z: np.ndarray, first: float, last: float, steps: int = 2000) -> np.ndarray:
    """Where the probability flow takes z from lambda `first` to `last`: Runge and Kutta's method of order 4 in lambda,
    for x = z / sqrt(alpha_bar), dx / dlambda = -sigma eps, sigma = e^-lambda."""
    h = (last - first) / steps

    def slope(x, level):
        a = 1 / (1 + np.exp(-2 * level))
        return -np.exp(-level) * eps_at(np.sqrt(a) * x, a)

    x = z * np.sqrt(1 + np.exp(-2 * first))
    for level in first + h * np.arange(steps):
        one = slope(x, level)
        two = slope(x + h / 2 * one, level + h / 2)
        three = slope(x + h / 2 * two, level + h / 2)
        x = x + h / 6 * (one + 2 * two + 2 * three + slope(x + h * three, level + h))
    return x / np.sqrt(1 + np.exp(-2 * last))
