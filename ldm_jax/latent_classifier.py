"""A noise-aware classifier p(y | z_t, t) of an LDM's latents, which guides that LDM (diffusion/guidance.py).

    z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) noise,   t uniform
    loss = E[-log p(y | z_t, t)]          (Dhariwal and Nichol 2021, section 4; the original's classifier.py)

It is right only for latents of the same first stage and scale, noised by the same schedule (rundir.py checks it).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

from ldm_jax.arrays import Array
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.keys import normal, stream
from ldm_jax.ldm import (
    DROPOUT_STREAM,
    NOISE_STREAM,
    POSTERIOR_STREAM,
    T_STREAM,
    Batch,
    Keys,
    Latent,
    LatentSpace,
    batch_size,
)

Tree = Any


@dataclass(frozen=True)
class LatentClassifier:
    """`network` is an EncoderUNet; `params` = {"classifier": its parameters}, `frozen` as the LDM's."""

    space: LatentSpace
    network: nn.Module
    schedule: NoiseSchedule

    def init(self, key: Key[Array, ""], frozen: Tree, batch: Batch) -> Tree:
        """`params` for a batch of this shape; traceable."""
        _, network_key, z_key = jax.random.split(key, 3)
        z = self.latents(frozen, batch, jax.random.split(z_key, batch_size(batch)))
        return {"classifier": self.network.init(network_key, z, jnp.zeros(len(z), jnp.int32))["params"]}

    def latents(self, frozen: Tree, batch: Batch, keys: Keys) -> Latent:
        """z [B,h,w,c] of a training batch, scaled."""
        return self.space.latents(frozen, batch, keys)

    def predict(
        self, params: Tree, z_t: Latent, t: Int[Array, " B"], dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B n"]:
        """Logits [B,n] for z_t [B,h,w,c] scaled, t [B]. Training mode with a dropout key."""
        train = dropout_key is not None
        rngs = {"dropout": dropout_key} if train else None
        return self.network.apply({"params": params["classifier"]}, z_t, t, train=train, rngs=rngs)

    def log_p(self, params: Tree, z_t: Latent, t: Int[Array, " B"], label: Int[Array, " B"]) -> Float[Array, " B"]:
        """log p(label | z_t, t) [B] for z_t [B,h,w,c] scaled, t [B], label [B] int32."""
        return _at(jax.nn.log_softmax(self.predict(params, z_t, t)), label)

    def loss_terms(
        self, params: Tree, frozen: Tree, batch: Batch, keys: Keys, train: bool
    ) -> dict[str, Float[Array, " B"]]:
        """Per-sample terms [B] at a random t: loss (cross-entropy, in nats) and accuracy (top 1, 0 or 1)."""
        return self.terms_between(params, frozen, batch, keys, (0, self.schedule.timesteps), train)

    def terms_between(
        self, params: Tree, frozen: Tree, batch: Batch, keys: Keys, bounds: tuple, train: bool
    ) -> dict[str, Float[Array, " B"]]:
        """The same for t uniform in bounds[0]..bounds[1]-1."""
        z = self.latents(frozen, batch, stream(keys, POSTERIOR_STREAM))
        t = jax.vmap(lambda k: jax.random.randint(k, (), *bounds))(stream(keys, T_STREAM))
        z_t = self.schedule.add_noise(z, normal(stream(keys, NOISE_STREAM), z.shape[1:]), t)
        dropout_key = jax.random.fold_in(keys[0], DROPOUT_STREAM) if train else None
        logits = self.predict(params, jax.lax.stop_gradient(z_t), t, dropout_key)
        right = jnp.argmax(logits, axis=-1) == batch["label"]
        return {"loss": -_at(jax.nn.log_softmax(logits), batch["label"]), "accuracy": right.astype(jnp.float32)}

    def loss(
        self, params: Tree, frozen: Tree, batch: Batch, keys: Keys, train: bool = True
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The scalar to minimise and its terms, means over the batch."""
        terms = {k: jnp.mean(v) for k, v in self.loss_terms(params, frozen, batch, keys, train).items()}
        return terms["loss"], terms


def _at(log_p: Float[Array, "B n"], label: Int[Array, " B"]) -> Float[Array, " B"]:
    """log_p [B,n] at label [B] -> [B]; NaN where there is no such class."""
    return jnp.take_along_axis(log_p, label[:, None], axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]
