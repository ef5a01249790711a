"""Fine-tuning: a new run that begins with the parameters of another one (config.init_from).

Parameters that both models have, of the same shape, are taken: the averaged ones where there are any. The others begin
as always. What was taken, what was not, and what was left over is printed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import checkpoint, rundir, tree
from ldm_jax.errors import ConfigError
from ldm_jax.training.state import TrainState

Tree = Any
SHOWN = 10  # names a list
Begin = Callable[[TrainState], TrainState]


def beginning(config: ConfigDict, workdir: str | Path, say: Callable[[str], None] = print) -> Begin | None:
    """What makes the first state of a run out of an initialised one; None where config.init_from is empty, or the run
    in `workdir` has begun already.

    Missing if there is no such run; ConfigError if it is of another task, or has no parameter that fits.
    """
    run = config.init_from
    if not run or checkpoint.has_checkpoint(workdir):
        return None
    found, step = parameters(config, run)

    def begin(state: TrainState) -> TrainState:
        fitting, lines = compared(state.params, found)
        if not fitting:
            every = "\n".join(lines)
            raise ConfigError(f"config.init_from={run}: not one of its parameters fits this model:\n{every}")
        of = f", step {step}" if step is not None else ""
        say(f"init_from {run}{of}: {len(fitting)} of {len(tree.flatten(state.params))} arrays of parameters are taken")
        for line in lines:
            say(line)
        ema = replaced(state.ema, fitting) if state.ema else state.ema
        return state.replace(params=replaced(state.params, fitting), ema=ema)

    return begin


def parameters(config: ConfigDict, run: str) -> tuple[dict[str, np.ndarray], int | None]:
    """({"unet/conv_in/kernel": array, ...}, step) of a run or an exported folder, named as in TrainState.params."""
    theirs = rundir.config_of(run, "the run to begin from")
    if theirs.task != config.task:
        raise ConfigError(f"config.init_from={run} holds a run of task {theirs.task!r}, this one is a {config.task!r}")
    params, frozen, step = rundir.model_of(theirs, run)
    if config.task == "first_stage":
        params = {"autoencoder": frozen["first_stage"]["params"]}
    return tree.flatten(params), step


def compared(params: Tree, found: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """(what is in `found` with the name and the shape of a parameter, lines about all the rest)."""
    wanted = tree.flatten(params)
    both = {n: (found[n], leaf.shape) for n, leaf in wanted.items() if n in found}
    fitting = {n: array for n, (array, shape) in both.items() if array.shape == shape}
    other = [f"{n}: {array.shape} there, {shape} here" for n, (array, shape) in both.items() if array.shape != shape]
    lists = {
        "begin anew, of another shape": other,
        "begin anew, not in that run": [n for n in wanted if n not in found],
        "left over": [n for n in found if n not in wanted],
    }
    lines = []
    for title, names in lists.items():
        if names:
            more = [f"    ... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
            lines += [f"  {title} ({len(names)}):", *(f"    {name}" for name in names[:SHOWN]), *more]
    return fitting, lines


def replaced(params: Tree, values: dict[str, np.ndarray]) -> Tree:
    """The tree with these leaves in place of its own, on the same devices, as new arrays."""

    def new(path, leaf: jax.Array) -> jax.Array:
        value = values.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if value is None:
            return leaf
        value = np.asarray(value).astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return jax.tree_util.tree_map_with_path(new, params)
