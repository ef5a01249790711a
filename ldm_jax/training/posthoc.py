"""Post-hoc EMA: an average of the parameters whose width is chosen after training (Karras et al. 2024, arXiv
2312.02696, 3.2 and C).

A power-function EMA at step t has the weights p(n) = (g + 1) n^g / t^(g + 1) on the parameters after step n <= t.
The average that is wanted is approximated by a sum of those that were kept (snapshots.py), with the coefficients whose
weights differ least from the wanted ones in the sense of least squares:

    A x = b,   A_ij = <p_i, p_j>,   b_i = <p_i, p>

Not in the paper: the coefficients sum to 1, so that with few snapshots, too, parameters keep their size.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from ldm_jax import rundir, tree
from ldm_jax.errors import ConfigError, Missing
from ldm_jax.files import at
from ldm_jax.training import snapshots
from ldm_jax.training.optim import power_of

Tree = Any


def products(
    t_a: Float[np.ndarray, " A"],
    g_a: Float[np.ndarray, " A"],
    t_b: Float[np.ndarray, " B"],
    g_b: Float[np.ndarray, " B"],
) -> Float[np.ndarray, "A B"]:
    """Inner products <p_a, p_b> of the weights of averages: at the steps t, of the powers g (algorithm 3)."""
    t_a, g_a, t_b, g_b = (np.asarray(x, np.float64) for x in (t_a, g_a, t_b, g_b))
    t_a, g_a = t_a[:, None], g_a[:, None]
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    power = np.where(t_a < t_b, g_b, g_a)  # of the longer one, at the end of the shorter one
    return (g_a + 1) * (g_b + 1) * ratio**power / ((g_a + g_b + 1) * np.maximum(t_a, t_b))


def coefficients(
    kept_t: Float[np.ndarray, " K"], kept_g: Float[np.ndarray, " K"], t: float, gamma: float
) -> Float[np.ndarray, " K"]:
    """What each of the kept averages is multiplied by, for the one at step t of the power gamma."""
    number = len(kept_t)
    system, wanted = np.ones((number + 1, number + 1)), np.ones(number + 1)  # the last row: the sum, by a multiplier
    system[:number, :number], system[number, number] = products(kept_t, kept_g, kept_t, kept_g), 0
    wanted[:number] = products(kept_t, kept_g, np.array([t]), np.array([gamma]))[:, 0]
    return np.linalg.solve(system, wanted)[:number]


def reconstruct(run: str | Path, sigma_rel: float, step: int | None = None) -> tuple[Tree, int]:
    """(the parameters' average of the relative width sigma_rel at `step`, that step), NumPy float32.

    step: one of which there is a snapshot, default the last; later ones are not used. Missing if there is none;
    ConfigError for a width that no average has, and for files of another model; Damaged for a damaged one.
    """
    gamma, there = power_of(sigma_rel), snapshots.steps(run)
    used = [s for s in there if step is None or s <= step]
    if not used or step not in (None, used[-1]):
        missing = f" of step {step} (there are: {there})" if there else ""
        raise Missing(
            f"averages of the run {run}{missing}, kept during training with --config.ema.kind=power "
            "--config.ema.snapshot_every=N"
        )
    files, times, powers = [], [], []
    for s in used:
        arrays, widths = snapshots.read(run, s)
        for i, kept in enumerate(widths):
            files.append((str(i), arrays))
            times.append(s)
            powers.append(power_of(kept))
    step = step or used[-1]
    x = coefficients(np.array(times), np.array(powers), step, gamma)
    shapes = rundir.params_shapes(rundir.config_of(run))
    leaves = [_sum(run, name, shape.shape, files, x) for name, shape in tree.flatten(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), step


def _sum(run: str | Path, name: str, shape: tuple[int, ...], files: list, x: np.ndarray) -> np.ndarray:
    total = np.zeros(shape, np.float64)
    for share, (track, arrays) in zip(x, files):
        array = arrays.get(f"{track}/{name}")
        if array is None or array.shape != shape:
            found = "no such array" if array is None else array.shape
            raise ConfigError(f"{at(run) / snapshots.FOLDER}: {name} is {shape} by config.json, {found} in a file")
        total += share * array.astype(np.float64)
    return total.astype(np.float32)
