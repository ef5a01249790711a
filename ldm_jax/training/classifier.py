"""A noise-aware classifier p(y | z_t, t) of an LDM's latents, which guides that LDM (diffusion/guidance.py).

    z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise,   t uniform
    loss = E[-log p(y | z_t, t)]          (Dhariwal and Nichol 2021, section 4; the original's classifier.py)

It means something only for latents of the same first stage and scale, noised by the same schedule: `check_options`
and `check_latents` refuse others.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ldm_jax.conditioners import Cond
from ldm_jax.keys import normal, purpose_key, sample_keys, stream
from ldm_jax.ldm import DROPOUT_STREAM, LDM, NOISE_STREAM, POSTERIOR_STREAM, T_STREAM, batch_size
from ldm_jax.training.state import TrainState
from ldm_jax.training.tasks import Batch, LDMTask, SampleSettings

Tree = Any
THIRDS = ("low_t", "mid_t", "high_t")  # of the schedule: little, more, most noise


@dataclass(frozen=True)
class LatentClassifier(LDM):
    """First stage and schedule as the LDM's; `unet` is an EncoderUNet, which says which class. Its parameters are
    `params` = {"classifier"}."""

    def init(self, key: jax.Array, frozen: Tree, batch: Batch) -> Tree:
        return {"classifier": super().init(key, frozen, batch)["unet"]}

    def predict(
        self, params: Tree, z_t: jax.Array, t: jax.Array, cond: Cond, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B,n] for z_t [B,h,w,c] scaled, t [B]."""
        return super().predict({"unet": params["classifier"]}, z_t, t, cond, dropout_key)

    def log_p(self, params: Tree, z_t: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        """log p(label | z_t, t) [B] for z_t [B,h,w,c] scaled, t [B], label [B] int32."""
        return _at(jax.nn.log_softmax(self.predict(params, z_t, t, Cond())), label)

    def loss_terms(
        self, params: Tree, frozen: Tree, batch: Batch, keys: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Per-sample terms [B] at a random t: loss (cross-entropy, in nats) and accuracy (top 1, 0 or 1)."""
        return self.terms_between(params, frozen, batch, keys, (0, self.schedule.timesteps), train)

    def terms_between(
        self, params: Tree, frozen: Tree, batch: Batch, keys: jax.Array, bounds: tuple, train: bool
    ) -> dict[str, jax.Array]:
        """The same for t uniform in bounds[0]..bounds[1]-1."""
        z = self.latents(frozen, batch, stream(keys, POSTERIOR_STREAM))
        t = jax.vmap(lambda k: jax.random.randint(k, (), *bounds))(stream(keys, T_STREAM))
        z_t = self.schedule.add_noise(z, normal(stream(keys, NOISE_STREAM), z.shape[1:]), t)
        dropout_key = jax.random.fold_in(keys[0], DROPOUT_STREAM) if train else None
        logits = self.predict(params, jax.lax.stop_gradient(z_t), t, Cond(), dropout_key)
        right = jnp.argmax(logits, axis=-1) == batch["label"]
        return {"loss": -_at(jax.nn.log_softmax(logits), batch["label"]), "accuracy": right.astype(jnp.float32)}


# Options that the noised latents of an LDM and of its classifier have in common.
NOT_LATENTS = ("checkpoint", "recipe", "dropout")  # of first_stage
SCHEDULE = ("schedule", "timesteps", "start", "end")  # of diffusion


def check_options(classifier: ConfigDict, ldm: ConfigDict, run: str) -> None:
    """ValueError with both values unless classifier and LDM (of `run`) have a like first stage and schedule."""

    def options(config: ConfigDict) -> dict:
        stage = {f"first_stage.{k}": v for k, v in config.first_stage.items() if k not in NOT_LATENTS}
        found = stage | {f"diffusion.{k}": config.diffusion[k] for k in SCHEDULE}
        return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in found.items()}

    ours, theirs = options(classifier), options(ldm)
    wrong = [
        f"    {k}: {ours.get(k)!r} of the classifier, {theirs.get(k)!r} of the LDM"
        for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k)
    ]  # fmt: skip
    if wrong:
        head = f"the classifier does not see the noised latents of the LDM in {run}:"
        raise ValueError("\n".join([head, *wrong, _ONE]))


def check_latents(classifier: Tree, ldm: Tree, run: str) -> None:
    """ValueError unless both `frozen` hold the same latent scale and first stage."""
    ours, theirs = (float(frozen["latent_scale"]) for frozen in (classifier, ldm))
    if not np.isclose(ours, theirs, rtol=1e-5, atol=0):
        raise ValueError(f"the latent scale is {ours:.6g} of the classifier, {theirs:.6g} of the LDM in {run}. {_ONE}")
    same = jax.tree.map(np.array_equal, classifier["first_stage"], ldm["first_stage"])
    if not all(jax.tree.leaves(same)):
        raise ValueError(f"the classifier was trained on latents of another first stage than the LDM in {run}. {_ONE}")


_ONE = "A classifier of that LDM's latents is trained with --config.guides=RUN, the run directory of the LDM."


def _at(log_p: jax.Array, label: jax.Array) -> jax.Array:
    """log_p [B,n] at label [B] -> [B]; NaN where there is no such class."""
    return jnp.take_along_axis(log_p, label[:, None], axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]


@dataclass(frozen=True)
class ClassifierTask(LDMTask):
    """Optimiser, averaging and state are the LDM's; `ldm` is a LatentClassifier.

    `scale_is_given`: frozen came with the latent scale of the LDM that is to be guided.
    """

    ldm: LatentClassifier
    samples: SampleSettings | None = None  # it draws nothing
    scale_is_given: bool = False

    headline = ("loss", "accuracy", "grad_norm", "learning_rate", "images_per_second")

    def prepare(self, frozen: Tree, batches: Iterable[Batch], say: Callable) -> Tree:
        return frozen if self.scale_is_given else super().prepare(frozen, batches, say)

    def evaluate(self, state: TrainState, frozen: Tree, batch: Batch, i: int) -> dict[str, jax.Array]:
        """Each image once in each third of the schedule: loss, accuracy, and the accuracy of each third."""
        keys = sample_keys(jax.random.fold_in(purpose_key(0, "evaluate"), i), batch_size(batch))
        params, steps = self.averaging.best(state), self.ldm.schedule.timesteps
        edges = jnp.array([steps * k // len(THIRDS) for k in range(len(THIRDS) + 1)])

        def one(bounds):
            return self.ldm.terms_between(params, frozen, batch, keys, bounds, train=False)

        terms = jax.lax.map(one, (edges[:-1], edges[1:]))  # [3,B] each; the network is compiled once
        means = {name: jnp.mean(values, axis=0) for name, values in terms.items()}
        return means | {f"accuracy_{name}": row for name, row in zip(THIRDS, terms["accuracy"])}

    def pictures(self, state: TrainState, frozen: Tree, batch: Batch) -> dict[str, jax.Array]:
        return {}
