"""What a training run carries from step to step: arrays only, so donation, sharding and Orbax need no special case."""

from typing import Any

import flax.struct
import jax

Tree = Any


@flax.struct.dataclass
class TrainState:
    """All that changes during training.

    step: int32 [], optimiser steps done. params: what the optimiser moves. ema: averaged parameters, or an
    empty dict. opt_state: optax state. variables: what changes without a gradient (running statistics, further
    averages), or an empty dict. key: uint32 key data [2]; wrapped where it is used, because checkpoints hold plain
    arrays.
    """

    step: jax.Array
    params: Tree
    ema: Tree
    opt_state: Tree
    variables: Tree
    key: jax.Array

    def step_key(self) -> jax.Array:
        """The random key of this step: a function of the run's key and the step alone."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)
