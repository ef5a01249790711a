"""Which training steps a sampler visits, and the noise levels it walks between. Plain numpy, made before jit.

A `Timetable` is ordered from noisy to clean. Entry k says: from noise level alpha_bar[k], which the network
knows as step t[k], go to alpha_bar_prev[k]. A sampler takes it as an argument, so the number of steps is
data: padded to one length, one compiled program serves every number of steps up to that length.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ldm_jax.arrays import Array
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import RequestError

SPACINGS = ("even", "trailing", "quadratic", "log_snr", "karras", "original", "original_quad")
KARRAS_RHO = 7.0
MOST_SIGMA = 110.0  # noise / signal: above it "log_snr" and "karras" make one step, the first


class Timetable(NamedTuple):
    """t [S] int32, alpha_bar [S] and alpha_bar_prev [S] float. Padding entries, always last, have t = -1."""

    t: Int[np.ndarray | Array, " S"]
    alpha_bar: Float[np.ndarray | Array, " S"]
    alpha_bar_prev: Float[np.ndarray | Array, " S"]


def make_timetable(schedule: NoiseSchedule, steps: int, spacing: str = "even") -> Timetable:
    """A timetable over a schedule of T training steps.

    spacing:
    "even"      exactly `steps` distinct steps for every 1 <= steps <= T, evenly spread over T-1 .. 0 with
                both ends included (a single step is T-1). The last step goes to alpha_bar 1, clean latents.
    "trailing"  the same, but the last of each group of T / steps training steps: from T-1 down to about
                T / steps - 1 (Lin et al. 2023).
    "quadratic" as "even", but evenly spread in the square root of the training step (Song et al. 2021, appendix D.2),
                up to rounding to whole training steps; so are the next two.
    "log_snr"   as "even", but evenly spread in log(snr), so denser at the clean end. For DPM-Solver++ and UniPC
                (Lu et al. 2022).
                A model whose last step is pure noise takes that step, and the others from sigma 100 on; so does
                the next one.
    "karras"    as "even", but evenly spread in sigma^(1/7), sigma = sqrt((1 - alpha_bar) / alpha_bar) (Karras et al.
                2022, eq. 5).
    "original"  1, 1+c, 1+2c, ... with c = T // steps, as the original code does. The number of steps then
                often differs from the one asked for (400 gives 500), the last step goes to alpha_bar[0], and
                a count that would overrun the table is refused here where the original crashes.
    "original_quad"  the original's "quad": 1 + k^2 c', k = 0 .. `steps` - 1, rounded down, from step 1 to about
                0.8 T. Many steps repeat the cleanest ones; the last step goes to alpha_bar[0].
    """
    total = schedule.timesteps
    if spacing not in SPACINGS:
        raise RequestError(f"spacing {spacing!r} is not one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= total:
        raise RequestError(f"the number of sampling steps must lie in 1..{total}, got {steps}")
    if spacing.startswith("original"):
        quad = spacing == "original_quad"
        ascending = _quad_steps(total, steps) if quad else _original_steps(total, steps)
        clean = schedule.alpha_bar[0]
    else:
        ascending = _spread(schedule, steps, spacing)[::-1]
        clean = 1.0
    alpha_bar = schedule.alpha_bar[ascending]
    alpha_bar_prev = np.append(clean, alpha_bar[:-1])
    return Timetable(ascending[::-1].astype(np.int32), alpha_bar[::-1], alpha_bar_prev[::-1])


def pad(timetable: Timetable, length: int) -> Timetable:
    """The same steps followed by entries with t = -1, which samplers skip, up to `length` in all."""
    missing = length - len(timetable.t)
    if missing < 0:
        raise ValueError(f"cannot pad {len(timetable.t)} steps to {length}; ask for a larger length")
    fill = (np.full(missing, -1, np.int32), np.ones(missing), np.ones(missing))
    return Timetable(*(np.concatenate([entries, extra]) for entries, extra in zip(timetable, fill)))


def _spread(schedule: NoiseSchedule, steps: int, spacing: str) -> Int[np.ndarray, " S"]:
    """Strictly decreasing steps from T-1 on, of the spacings that take any number of steps."""
    last, index = schedule.timesteps - 1, np.arange(steps)
    if spacing == "trailing":
        return last - index * (last + 1) // steps
    if spacing == "even":
        return last - index * last // max(steps - 1, 1)
    if spacing == "quadratic":
        nearest = np.rint(np.linspace(np.sqrt(last), 0, steps) ** 2).astype(int)
    else:
        log_snr = np.log(schedule.alpha_bar / (1 - schedule.alpha_bar))
        # A cosine schedule ends near a sigma of 20,000, pure noise above all: many steps would change nothing.
        ends = max(log_snr[-1], -2 * np.log(MOST_SIGMA)), log_snr[0]
        if spacing == "log_snr":
            levels = np.linspace(*ends, steps)
        else:
            noisy, clean = (np.exp(-level / 2) ** (1 / KARRAS_RHO) for level in ends)
            levels = -2 * KARRAS_RHO * np.log(np.linspace(noisy, clean, steps))
        nearest = np.rint(np.interp(levels, log_snr[::-1], np.arange(last, -1, -1))).astype(int)
        nearest[0] = last
    distinct = np.minimum.accumulate(nearest + index) - index
    return np.maximum(distinct, index[::-1])  # making them distinct must not run below 0


def _original_steps(total: int, steps: int) -> Int[np.ndarray, " S"]:
    """The original's ascending steps, or an error that names the nearest counts that work."""
    if not _fits(total, steps):
        below = next(s for s in range(steps, 0, -1) if _fits(total, s))
        above = next((s for s in range(steps, total + 1) if _fits(total, s)), None)
        near = f"{below} and {above}" if above else f"{below}"
        raise RequestError(
            f"spacing 'original' with {steps} steps needs training step {total}, the last is {total - 1}; "
            f"nearest usable: {near}; or spacing 'even', which takes any number"
        )
    return np.arange(0, total, total // steps) + 1


def _quad_steps(total: int, steps: int) -> Int[np.ndarray, " S"]:
    return np.square(np.linspace(0, np.sqrt(0.8 * total), steps)).astype(int) + 1


def _fits(total: int, steps: int) -> bool:
    stride = total // steps
    return (total - 1) // stride * stride + 1 < total
