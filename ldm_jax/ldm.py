"""The latent diffusion model: the join of first stage, conditioner, UNet and noise schedule (paper, section 3).

    z = scale * E(image),   z_t = signal_t z + noise_t noise     (sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t))
    loss = E || target - UNet(z_t, t, cond) ||^p          (paper, equation 2; p = 1 or 2)

`LDM` holds modules and numbers, no parameters. Parameters come as two trees:
`params` = {"unet", "conditioner", "logvar" (if learned)}, moved by the optimiser, and
`frozen` = {"first_stage": its variables, "latent_scale": float32 []}, which never change during training; a conditioner
that is not trained is in `frozen` in place of `params`. With a shift and a scale for each channel (not in the paper)
`frozen` also has "latent_shift": z = scale (E(image) - shift), float32 [c] both.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from ldm_jax.arrays import Array
from ldm_jax.conditions.base import Cond, ConditionNetwork, drop, drop_parts
from ldm_jax.conditions.none import Unconditional
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import ConfigError
from ldm_jax.keys import normal, stream

Tree = Any
Batch = dict[str, jax.Array]
Image = Float[Array, "B H W C"]  # in [-1,1]
Latent = Float[Array, "B h w c"]
Keys = Key[Array, " B"]  # one a sample
# Streams drawn from one sample's key; never the same key twice.
T_STREAM, NOISE_STREAM, POSTERIOR_STREAM, DROPOUT_STREAM, CONDITION_STREAM, OFFSET_STREAM = range(6)
T_DISTRIBUTIONS = ("uniform", "logit_normal")
SCALING = ("latent_scale", "latent_shift")  # of `frozen`


def batch_size(batch: Batch) -> int:
    """B; every field of a batch has it."""
    return len(next(iter(batch.values())))


def latents_of(frozen: Tree) -> Tree:
    """The part of `frozen` that makes latents of images."""
    return {"first_stage": frozen["first_stage"]} | scaling_of(frozen)


def scaling_of(frozen: Tree) -> Tree:
    """The numbers of `scaled`."""
    return {name: frozen[name] for name in SCALING if name in frozen}


def scaled(frozen: Tree, z: Latent) -> Latent:
    """The first stage's latent [B,h,w,c] -> the diffusion model's."""
    return (z - frozen["latent_shift"] if "latent_shift" in frozen else z) * frozen["latent_scale"]


def unscaled(frozen: Tree, z: Latent) -> Latent:
    """The inverse of `scaled`."""
    z = z / frozen["latent_scale"]
    return z + frozen["latent_shift"] if "latent_shift" in frozen else z


@dataclass(frozen=True)
class LatentSpace:
    """A first stage and the scale of its latents: what a diffusion model and its classifier have in common.

    `frozen` = {"first_stage": variables, "latent_scale": float32 []} and "latent_shift" (module's docstring). Float32
    products are exact ("highest") here, on every accelerator, because an error of the first stage shows in every image.
    """

    first_stage: nn.Module

    def encode(self, frozen: Tree, image: Image, keys: Keys | None = None) -> Latent:
        """image [B,H,W,C] in [-1,1] -> scaled latent z [B,h,w,c]. KL: a posterior sample per key, or the mode."""
        return scaled(frozen, self._apply(frozen, "latents", image, keys))

    def latents(self, frozen: Tree, batch: Batch, keys: Keys) -> Latent:
        """z [B,h,w,c] of a training batch: of its "image", or the same from its cached "moments" (data/latents.py)."""
        if "moments" not in batch:
            return self.encode(frozen, batch["image"], keys)
        return scaled(frozen, self._apply(frozen, "draw", batch["moments"], keys))

    def decode(self, frozen: Tree, z: Latent) -> Image:
        """Scaled latent z [B,h,w,c] -> image [B,H,W,C], about [-1,1], not clipped."""
        return self._apply(frozen, "decode", unscaled(frozen, z))

    def _apply(self, frozen: Tree, method: str, *args) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return self.first_stage.apply(frozen["first_stage"], *args, method=method)


@dataclass(frozen=True)
class LDM:
    """See the module's docstring. `loss_type` is "l1" or "l2"; `elbo_weight` weighs the variational bound term
    (the original's original_elbo_weight); `learn_logvar` learns one log variance per timestep;
    `weighting` is "none" or "min_snr" with `min_snr_gamma` (schedule.loss_weight); `cond_drop_prob`: share of the
    training samples without their condition, and `cond_drop_each`: without one alone of several joined conditions, for
    each of them. `offset_noise`: standard deviation of a further noise that is the same in
    all pixels of a channel, 0 = none. `t_distribution`: "uniform", or "logit_normal": logit(t / T) ~ N(t_mean, t_std^2)
    (Esser et al. 2024, arXiv 2403.03206, eq. 19)."""

    first_stage: nn.Module
    unet: nn.Module
    schedule: NoiseSchedule
    conditioner: ConditionNetwork = field(default_factory=Unconditional)
    loss_type: str = "l2"
    elbo_weight: float = 0.0
    learn_logvar: bool = False
    logvar_init: float = 0.0
    weighting: str = "none"
    cond_drop_prob: float = 0.0
    cond_drop_each: float = 0.0
    min_snr_gamma: float = 5.0
    offset_noise: float = 0.0
    t_distribution: str = "uniform"
    t_mean: float = 0.0
    t_std: float = 1.0

    def __post_init__(self):
        if self.t_distribution not in T_DISTRIBUTIONS:
            known = ", ".join(T_DISTRIBUTIONS)
            raise ConfigError(f"config.diffusion.t_distribution={self.t_distribution!r} is not one of {known}")
        for name, least in (("min_snr_gamma", 1e-6), ("t_std", 1e-6), ("offset_noise", 0)):
            if not getattr(self, name) >= least:
                must = "above" if least else "at least"
                raise ConfigError(f"config.diffusion.{name}={getattr(self, name)} must be {must} 0")
        if self.loss_type not in ("l1", "l2"):
            raise ConfigError(f"config.diffusion.loss={self.loss_type!r} is not one of l1, l2")

    def init(self, key: Key[Array, ""], frozen: Tree, batch: Batch) -> Tree:
        """`params` for a batch of this shape; traceable: `jax.eval_shape` gives the shapes without computing."""
        cond_key, unet_key, z_key = jax.random.split(key, 3)
        z = self.latents(frozen, batch, jax.random.split(z_key, batch_size(batch)))
        encode = partial(self.encode, frozen)
        trained = {}
        if "conditioner" not in frozen:
            trained["conditioner"] = self.conditioner.init(cond_key, batch, encode).get("params", {})
        cond = self.condition(trained, frozen, batch)
        t = jnp.zeros(len(z), jnp.int32)
        unet_params = self.unet.init(unet_key, _join(z, cond), t, cond.context)["params"]
        params = {"unet": unet_params} | trained
        if self.learn_logvar:
            params["logvar"] = jnp.full(self.schedule.timesteps, self.logvar_init, jnp.float32)
        return params

    @property
    def space(self) -> LatentSpace:
        return LatentSpace(self.first_stage)

    def encode(self, frozen: Tree, image: Image, keys: Keys | None = None) -> Latent:
        """image [B,H,W,C] in [-1,1] -> scaled latent z [B,h,w,c]. KL: a posterior sample per key, or the mode."""
        return self.space.encode(frozen, image, keys)

    def latents(self, frozen: Tree, batch: Batch, keys: Keys) -> Latent:
        """z [B,h,w,c] of a training batch: of its "image", or the same from its cached "moments" (data/latents.py)."""
        return self.space.latents(frozen, batch, keys)

    def decode(self, frozen: Tree, z: Latent) -> Image:
        """Scaled latent z [B,h,w,c] -> image [B,H,W,C], about [-1,1], not clipped."""
        return self.space.decode(frozen, z)

    def condition(self, params: Tree, frozen: Tree, batch: Batch) -> Cond:
        """The batch's condition as the UNet gets it. The conditioner's parameters are in `frozen` or `params`."""
        kept = frozen.get("conditioner", params.get("conditioner"))
        return self.conditioner.apply({"params": kept}, batch, partial(self.encode, frozen))

    def predict(
        self, params: Tree, z_t: Latent, t: Int[Array, " B"], cond: Cond, dropout_key: Key[Array, ""] | None = None
    ) -> Latent:
        """The UNet's output [B,h,w,c] (eps, x0 or v as the schedule says). Training mode with a dropout key."""
        train = dropout_key is not None
        rngs = {"dropout": dropout_key} if train else None
        return self.unet.apply({"params": params["unet"]}, _join(z_t, cond), t, cond.context, train=train, rngs=rngs)

    def draw(self, keys: Keys, shape: tuple[int, ...]) -> tuple[Int[Array, " B"], Float[Array, "B ..."]]:
        """The loss's draws for keys [B]: t [B], uniform in 0..T-1, and standard normal noise [B,*shape]; or as
        `t_distribution` and `offset_noise` say.

        A subclass may replace it, for instance to train with the draws of another code and compare trajectories.
        """
        timesteps, t_keys = self.schedule.timesteps, stream(keys, T_STREAM)
        if self.t_distribution == "uniform":
            t = jax.vmap(lambda k: jax.random.randint(k, (), 0, timesteps))(t_keys)
        else:
            share = jax.nn.sigmoid(self.t_mean + self.t_std * normal(t_keys, ()))
            t = jnp.clip(jnp.int32(share * timesteps), 0, timesteps - 1)
        noise = normal(stream(keys, NOISE_STREAM), shape)
        if self.offset_noise:
            noise += self.offset_noise * normal(stream(keys, OFFSET_STREAM), (*(1,) * (len(shape) - 1), shape[-1]))
        return t, noise

    def loss_terms(
        self, params: Tree, frozen: Tree, batch: Batch, keys: Keys, train: bool
    ) -> dict[str, Float[Array, " B"]]:
        """Per-sample terms [B]: loss (what is minimised), loss_simple, loss_vlb. keys [B], one a sample."""
        z = jax.lax.stop_gradient(self.latents(frozen, batch, stream(keys, POSTERIOR_STREAM)))
        if train and self.cond_drop_each:
            u = jax.vmap(jax.random.uniform)(stream(keys, CONDITION_STREAM))
            batch = drop_parts(self.conditioner, batch, u, self.cond_drop_prob, self.cond_drop_each)
        elif train and self.cond_drop_prob:
            dropped = jax.vmap(lambda k: jax.random.bernoulli(k, self.cond_drop_prob))(stream(keys, CONDITION_STREAM))
            batch = drop(self.conditioner, batch, dropped)
        cond = self.condition(params, frozen, batch)
        t, noise = self.draw(keys, z.shape[1:])
        dropout_key = jax.random.fold_in(keys[0], DROPOUT_STREAM) if train else None
        output = self.predict(params, self.schedule.add_noise(z, noise, t), t, cond, dropout_key)
        return self.weigh(params, output, self.schedule.target(z, noise, t), t)

    def weigh(self, params: Tree, output: Latent, target: Latent, t: Int[Array, " B"]) -> dict[str, Float[Array, " B"]]:
        """Network output and target [B,h,w,c] at t [B] -> per-sample terms [B] (the original's p_losses)."""
        error = output.astype(jnp.float32) - target
        error = jnp.abs(error) if self.loss_type == "l1" else jnp.square(error)
        simple = jnp.mean(error, axis=tuple(range(1, error.ndim)))
        logvar = params["logvar"][t] if self.learn_logvar else jnp.float32(self.logvar_init)
        weighted = simple * self.schedule.loss_weight(t, self.weighting, self.min_snr_gamma)
        vlb = self.schedule.lvlb_weight(t) * simple
        loss = weighted / jnp.exp(logvar) + logvar + self.elbo_weight * vlb
        return {"loss": loss, "loss_simple": simple, "loss_vlb": vlb}

    def loss(
        self, params: Tree, frozen: Tree, batch: Batch, keys: Keys, train: bool = True
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The scalar to minimise and its terms, means over the batch."""
        terms = {k: jnp.mean(v) for k, v in self.loss_terms(params, frozen, batch, keys, train).items()}
        return terms["loss"], terms


def _join(z: Latent, cond: Cond) -> Float[Array, "B h w c_in"]:
    return z if cond.concat is None else jnp.concatenate([z, cond.concat.astype(z.dtype)], axis=-1)


def measure_latent_scale(
    space: LatentSpace | LDM, frozen: Tree, batches: Iterable[Batch], key: Key[Array, ""]
) -> float:
    """1 / standard deviation of all latent elements over `batches` (paper, appendix G: unit variance).

    The original looks at the first batch of one process; this looks at every batch it is given.
    Raises ValueError when the latents do not vary.
    """
    unit = frozen | {"latent_scale": jnp.float32(1.0)}

    @jax.jit
    def moments(unit, batch, key):
        z = space.latents(unit, batch, jax.random.split(key, batch_size(batch)))
        return jnp.mean(z), jnp.mean(jnp.square(z))

    parts = np.array([moments(unit, b, jax.random.fold_in(key, i)) for i, b in enumerate(batches)], np.float64)
    mean, square = parts.mean(axis=0)
    std = float(np.sqrt(max(square - mean**2, 0.0)))
    if not np.isfinite(std) or std < 1e-6:
        raise ValueError(f"the latents have standard deviation {std}; is the first stage trained?")
    return 1.0 / std


def measure_channels(
    space: LatentSpace | LDM, frozen: Tree, batches: Iterable[Batch], key: Key[Array, ""]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """(shift, scale) [c] float32: each channel's mean and 1 / standard deviation over `batches` of one size.

    Raises ValueError when a channel does not vary.
    """
    unit = {name: value for name, value in frozen.items() if name != "latent_shift"} | {"latent_scale": jnp.float32(1)}

    @jax.jit
    def moments(unit, batch, key):
        z = space.latents(unit, batch, jax.random.split(key, batch_size(batch)))
        return jnp.mean(z, (0, 1, 2)), jnp.var(z, (0, 1, 2))

    parts = np.array([moments(unit, b, jax.random.fold_in(key, i)) for i, b in enumerate(batches)], np.float64)
    means, variances = parts[:, 0], parts[:, 1]  # [N,c]
    std = np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    if not np.isfinite(std).all() or (std < 1e-6).any():
        raise ValueError(f"channels of the latents have the standard deviations {std}; is the first stage trained?")
    return means.mean(axis=0).astype(np.float32), (1 / std).astype(np.float32)
