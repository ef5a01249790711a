"""What is trained: a Task has init, step, evaluate and pictures; the loop knows nothing more.

    init(key_data, frozen, batch) -> TrainState           traceable: shapes come from jax.eval_shape
    step(state, frozen, batch) -> (state, metrics)        one optimiser step, jitted and donated by the loop
    evaluate(state, frozen, batch, i) -> {name: [B]}      per-sample validation metrics; i = batch number
    pictures(state, frozen, batch) -> {name: [N,H,W,C]}   in [-1,1]
    prepare(frozen, batches, say) -> frozen               measured once per run, before the first step

`frozen` is an argument beside the state, never a closure: a closure would bake it into the program.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldm_jax.diffusion.timetable import Timetable
from ldm_jax.generate import image_keys, sample_latents
from ldm_jax.ldm import LDM, measure_latent_scale
from ldm_jax.training.optim import ema_update
from ldm_jax.training.state import TrainState, sample_keys

Tree = Any
Batch = dict[str, jax.Array]


def accumulate(fn: Callable, batch: Batch, keys: jax.Array, carry: Tree, steps: int) -> tuple[Tree, Tree]:
    """Mean of `fn(batch, keys, carry) -> (values, carry)` over `steps` equal parts of the batch [B].

    Part j holds samples j, j + steps, ...: each device keeps its own rows. Returns (mean values, last carry).
    """
    if steps == 1:
        return fn(batch, keys, carry)

    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0] // steps, steps, *x.shape[1:]), 1, 0)

    def body(carry, part):
        total, inner = carry
        values, inner = fn(*part, inner)
        return (jax.tree.map(jnp.add, total, values), inner), None

    parts = jax.tree.map(split, batch), split(keys)
    shapes = jax.eval_shape(lambda p: fn(*p, carry)[0], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (total, carry), _ = jax.lax.scan(body, (zeros, carry), parts)
    return jax.tree.map(lambda x: x / steps, total), carry


@dataclass(frozen=True)
class Averaging:
    """Exponential moving average; decay 0 = none. With warm-up the decay is min(decay, (1+n)/(10+n))."""

    decay: float = 0.9999
    warmup: bool = True

    def init(self, params: Tree) -> Tree:
        return jax.tree.map(jnp.copy, params) if self.decay else {}

    def update(self, ema: Tree, params: Tree, step: jax.Array) -> Tree:
        """step: optimiser steps done, 1 after the first."""
        return ema_update(ema, params, step, self.decay, self.warmup) if self.decay else ema

    def best(self, state: TrainState) -> Tree:
        """The averaged parameters where there are any."""
        return state.ema if self.decay else state.params


@dataclass(frozen=True)
class SampleSettings:
    """The grid that is drawn during training, with fixed noise."""

    latent_shape: tuple[int, int, int]
    timetable: Timetable
    eta: float = 0.0
    number: int = 16
    seed: int = 0


@dataclass(frozen=True)
class LDMTask:
    """Second stage: the UNet (and conditioner) on latents of a frozen first stage.

    `latent_scale` 0 means: measured over `scale_batches` batches before the first step and kept with the run.
    """

    ldm: LDM
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    samples: SampleSettings
    averaging: Averaging = Averaging()
    accumulate: int = 1
    latent_scale: float = 0.0
    scale_batches: int = 16

    headline = ("loss", "grad_norm", "learning_rate", "images_per_second")
    keeps_frozen = True

    def prepare(self, frozen: Tree, batches: Iterable[Batch], say: Callable) -> Tree:
        """frozen with its latent scale."""
        scale = self.latent_scale
        if not scale:
            some = (b for _, b in zip(range(self.scale_batches), batches))
            scale = measure_latent_scale(self.ldm, frozen, some, jax.random.key(0))
            say(f"latent scale {scale:.5f}, measured over {self.scale_batches} batches")
        return frozen | {"latent_scale": jnp.float32(scale)}

    def init(self, key_data: jax.Array, frozen: Tree, batch: Batch) -> TrainState:
        key = jax.random.wrap_key_data(key_data)
        params = self.ldm.init(jax.random.fold_in(key, 2**31), frozen, batch)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=self.averaging.init(params),
            opt_state=self.optimizer.init(params),
            variables={},
            key=key_data,
        )

    def step(self, state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        def values(batch, keys, carry):
            grads, terms = jax.grad(self.ldm.loss, has_aux=True)(state.params, frozen, batch, keys)
            return (grads, terms), carry

        keys = sample_keys(state.step_key(), len(batch["image"]))
        (grads, metrics), _ = accumulate(values, batch, keys, (), self.accumulate)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"grad_norm": optax.global_norm(grads), "learning_rate": self.learning_rate(state.step)}
        step = state.step + 1
        ema = self.averaging.update(state.ema, params, step)
        return state.replace(step=step, params=params, ema=ema, opt_state=opt_state), metrics

    def evaluate(self, state: TrainState, frozen: Tree, batch: Batch, i: int) -> dict[str, jax.Array]:
        """The training loss of the averaged parameters with the same noise at every evaluation."""
        keys = sample_keys(jax.random.fold_in(jax.random.key(1), i), len(batch["image"]))
        return self.ldm.loss_terms(self.averaging.best(state), frozen, batch, keys, train=False)

    def pictures(self, state: TrainState, frozen: Tree, batch: Batch) -> dict[str, jax.Array]:
        s = self.samples
        params = self.averaging.best(state)
        batch = jax.tree.map(lambda x: x[: s.number], batch)
        keys = image_keys(s.seed, jnp.arange(s.number))
        z = sample_latents(self.ldm, params, frozen, batch, keys, s.latent_shape, s.timetable, s.eta)
        return {"samples": self.ldm.decode(frozen, z)}
