"""Training of the classifier that guides a diffusion model."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from ldm_jax.keys import purpose_key, sample_keys
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.ldm import batch_size
from ldm_jax.training import sharding
from ldm_jax.training.state import TrainState
from ldm_jax.training.tasks import Batch, LDMTask, SampleSettings

Tree = Any
THIRDS = ("low_t", "mid_t", "high_t")  # of the schedule: little, more, most noise


@dataclass(frozen=True)
class ClassifierTask(LDMTask):
    """Optimiser, averaging and state are the LDM's; `ldm` is a LatentClassifier."""

    ldm: LatentClassifier
    samples: SampleSettings | None = None  # it makes no pictures

    draws = False
    headline = ("loss", "accuracy", "grad_norm", "learning_rate", "images_per_second")

    def evaluate(self, state: TrainState, frozen: Tree, batch: Batch, i: int) -> dict[str, jax.Array]:
        """Each image once in each third of the schedule: loss, accuracy, and the accuracy of each third."""
        keys = sharding.rows(sample_keys(jax.random.fold_in(purpose_key(0, "evaluate"), i), batch_size(batch)))
        params, steps = self.averaging.best(state), self.ldm.schedule.timesteps
        edges = jnp.array([steps * k // len(THIRDS) for k in range(len(THIRDS) + 1)])

        def one(bounds):
            return self.ldm.terms_between(params, frozen, batch, keys, bounds, train=False)

        terms = jax.lax.map(one, (edges[:-1], edges[1:]))  # [3,B] each; the network is compiled once
        means = {name: jnp.mean(values, axis=0) for name, values in terms.items()}
        return means | {f"accuracy_{name}": row for name, row in zip(THIRDS, terms["accuracy"])}

    def pictures(self, *_) -> dict[str, np.ndarray]:
        return {}

    def compile_pictures(self, *_) -> list[Compiled]:
        return []
