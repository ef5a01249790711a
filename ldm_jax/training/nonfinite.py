"""Losses and gradients that are not finite: the step that skips them, the error that names them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.keys import purpose_of
from ldm_jax.training.state import TrainState

Tree = Any
Step = Callable[[TrainState, Tree, Tree], tuple[TrainState, dict[str, jax.Array]]]
SKIPPED = "skipped"  # a metric of steps that may be skipped: 1 if it was, else 0
# Not asked when a step is skipped: it needs all new parameters, so that old and new ones would be in memory together.
LATE = "param_norm"


REPLAY = 200  # at most so many steps are done again to find the modules


class NonFinite(RuntimeError):
    """A metric of `step` is NaN or infinite."""

    def __init__(self, step: int, told: str):
        super().__init__(told)
        self.step = step


def step_of(step: Step, on_nonfinite: str, noise_seed: int) -> Step:
    """The step as the options say: "stop" and 0 leave it as it is. ConfigError for anything but "stop" and "skip"."""
    if on_nonfinite not in ("stop", "skip"):
        raise ConfigError(f"config.on_nonfinite={on_nonfinite!r} is not one of stop, skip")
    if noise_seed:
        step = with_noise(step, noise_seed)
    return skipping(step) if on_nonfinite == "skip" else step


def with_noise(step: Step, seed: int) -> Step:
    """The step with other random numbers (noise levels, noise, dropout, dropped conditions). The data stay the same,
    and so does the key in the state."""

    def other(state: TrainState, frozen: Tree, batch: Tree):
        new, metrics = step(state.replace(key=_other_key(state.key, seed)), frozen, batch)
        return new.replace(key=state.key), metrics

    return other


def _other_key(key: jax.Array, noise_seed: int) -> jax.Array:
    """Key data [2] of a run's key and a noise_seed; of 0 the key itself."""
    if not noise_seed:
        return key
    return jax.random.key_data(jax.random.fold_in(purpose_of(jax.random.wrap_key_data(key), "noise"), noise_seed))


def skipping(step: Step) -> Step:
    """The step, but where a metric is not finite (the losses, the norms of the gradients) it changes nothing in the
    state except its number of steps. Adds the metric SKIPPED."""

    def guarded(state: TrainState, frozen: Tree, batch: Tree):
        new, metrics = step(state, frozen, batch)
        good = jnp.all(jnp.stack([jnp.isfinite(v) for name, v in metrics.items() if name != LATE]))
        kept = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, state.replace(step=new.step))
        return kept, metrics | {SKIPPED: 1.0 - good}

    return guarded


class Collector:
    """Means of the metrics of some steps. `limit`: so many steps in a row may be skipped."""

    def __init__(self, workdir: Path, limit: int):
        if limit < 1:
            raise ConfigError(f"config.nonfinite_limit={limit} must be at least 1")
        self.workdir, self.limit, self.in_a_row = workdir, limit, 0

    def means(self, pending: list[tuple[int, dict[str, jax.Array]]]) -> dict[str, float]:
        """Over the steps that were not skipped, and how many were: {name: mean}.

        Raises NonFinite at the first step with a metric that is not finite, or, of steps that may be skipped, when
        `limit` in a row were.
        """
        values = jax.device_get([metrics for _, metrics in pending])
        for (step, _), metrics in zip(pending, values):
            skipped = bool(metrics.get(SKIPPED, 0))
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            bad = [name for name, value in metrics.items() if not np.isfinite(value)]
            if bad and (not skipped or self.in_a_row >= self.limit):
                raise NonFinite(step, self._told(step, bad))
        good = [metrics for metrics in values if not metrics.get(SKIPPED, 0)]
        means = {name: float(np.mean([m[name] for m in good])) for name in values[0]} if good else {}
        return means | {SKIPPED: float(len(values) - len(good))} if SKIPPED in values[0] else means

    def _told(self, step: int, bad: list[str]) -> str:
        row = f" {self.in_a_row} steps in a row were skipped (--config.nonfinite_limit)." if self.in_a_row else ""
        return (
            f"step {step}: {', '.join(bad)} is not finite.{row} Training stopped; the checkpoints in "
            f"{self.workdir / 'checkpoints'} are from before. The same command comes to the same step again. Usual "
            "remedies: a lower --config.optim.learning_rate, gradient clipping (--config.optim.clip_norm=1.0), "
            "float32. To go on past a single such step: --config.on_nonfinite=skip, or other noise with "
            "--config.noise_seed=1."
        )


def modules(task: Any, state: TrainState, frozen: Tree, batch: Tree, noise_seed: int) -> tuple[list[str], int]:
    """(modules of which a gradient of the step from `state` is not finite, the number of all modules). A module is
    named by the first two names of its path."""

    def bad(state, frozen, batch):
        grads, _ = task.gradients(state.replace(key=_other_key(state.key, noise_seed)), frozen, batch)
        found: dict[str, jax.Array] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
            name = "/".join(str(key.key) for key in path[:2])
            found[name] = found.get(name, False) | ~jnp.all(jnp.isfinite(leaf))
        return found

    found = jax.device_get(jax.jit(bad)(state, frozen, batch))
    return [name for name, value in found.items() if value], len(found)
