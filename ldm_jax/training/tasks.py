"""What is trained: a `Task` says how to begin, step, evaluate and draw; the loop knows nothing more.

`frozen` (first stage, LPIPS, ...) is an argument beside the state, never a closure: a closure would bake it into the
program.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.stages import Compiled

from ldm_jax import losses
from ldm_jax.diffusion.timetable import Timetable
from ldm_jax.keys import purpose_key, purpose_of, sample_keys, stream
from ldm_jax.ldm import DROPOUT_STREAM, LDM, POSTERIOR_STREAM, batch_size, measure_channels, measure_latent_scale
from ldm_jax.models import kernels
from ldm_jax.models.discriminator import NLayerDiscriminator
from ldm_jax.models.lpips import LPIPS
from ldm_jax.programs import Call, Method, Programs, on_host
from ldm_jax.training import sharding
from ldm_jax.training.optim import ema_update, power_of, power_update
from ldm_jax.training.state import TrainState

Tree = Any
Batch = dict[str, jax.Array]
Check = Callable[[], None]  # raises to end the work


def no_check() -> None:
    """The work is not interrupted."""


class Task(Protocol):
    """What the training loop needs of that which is trained.

    columns: of the grids of pictures, None = square. headline: metrics of the progress line, if they are there.
    keeps_frozen: `prepare` measures something, and its result is kept with the run. draws: it makes pictures.
    fewer_pictures: the option for fewer of them, "" = there is none.
    """

    columns: int | None
    headline: tuple[str, ...]
    keeps_frozen: bool
    draws: bool
    fewer_pictures: str

    def prepare(self, frozen: Tree, batches: Iterable[Batch], say: Callable) -> Tree:
        """frozen with what is measured once per run, before the first step."""

    def init(self, key_data: jax.Array, frozen: Tree, batch: Batch) -> TrainState:
        """The state before the first step; traceable: shapes come from jax.eval_shape."""

    def step(self, state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimiser step and its metrics, scalars. The loop compiles it and donates the state."""

    def gradients(self, state: TrainState, frozen: Tree, batch: Batch) -> tuple[Tree, dict[str, jax.Array]]:
        """The gradients of that step, as `params`, and the metrics of its losses."""

    def evaluate(self, state: TrainState, frozen: Tree, batch: Batch, i: int) -> dict[str, jax.Array]:
        """Validation metrics of each sample, {name: [B]}; i = number of the batch."""

    def pictures(
        self, state: TrainState, frozen: Tree, batch: Batch, mesh: Mesh, check: Check = no_check
    ) -> dict[str, np.ndarray]:
        """{name: images [N,H,W,C] in [-1,1]}, on every host. `check` is called between parts of the work."""

    def compile_pictures(self, state: TrainState, frozen: Tree, batch: Batch, mesh: Mesh) -> list[Compiled]:
        """The programs of `pictures`, which then compiles nothing. The arguments may be shapes with their places."""

    def weights(self, state: TrainState, frozen: Tree) -> dict[str, tuple[Tree, Tree]]:
        """{"averaged" | "raw": (params, frozen)} as a Pipeline takes them, the better ones first; {}: it makes no
        pictures."""


MOST_UNROLLED = 8  # parts of a batch that a program for CPUs has one after another


def accumulate(fn: Callable, batch: Batch, keys: jax.Array, carry: Tree, steps: int) -> tuple[Tree, Tree]:
    """Mean of `fn(batch, keys, carry) -> (values, carry)` over `steps` equal parts of the batch [B].

    Part j holds samples j, j + steps, ...: each device keeps its own rows. Returns (mean values, last carry).
    On several devices the values are split like parameters, so that none keeps whole gradients.
    """
    batch, keys = sharding.rows((batch, keys))
    if steps == 1:
        values, carry = fn(batch, keys, carry)
        return sharding.like_params(values), carry

    def split(x):
        return sharding.rows(jnp.moveaxis(x.reshape(x.shape[0] // steps, steps, *x.shape[1:]), 1, 0), axis=1)

    def body(carry, part):
        total, inner = carry
        values, inner = fn(*part, inner)
        return (jax.tree.map(jnp.add, total, sharding.like_params(values)), inner), None

    parts = jax.tree.map(split, batch), split(keys)
    shapes = jax.eval_shape(lambda p: fn(*p, carry)[0], jax.tree.map(lambda x: x[0], parts))
    zeros = sharding.like_params(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    state = zeros, carry
    if kernels.backend() == "cpu" and steps <= MOST_UNROLLED:  # in a loop XLA for CPUs uses one core for most of it
        for j in range(steps):
            part = jax.tree.map(lambda x, j=j: x[j], parts)
            state, _ = body(state, _after(state, part) if j else part)
    else:
        state, _ = jax.lax.scan(body, state, parts)
    total, carry = state
    return jax.tree.map(lambda x: x / steps, total), carry


def _after(sums: Tree, part: Tree) -> Tree:
    """The part of a batch, but what is computed from its images waits for the sums of the parts before it.

    XLA for CPUs puts parts that do not depend on each other side by side, in the memory of all of them. So 0 times the
    sums is added. Not on several (pretended) devices, where it would be sent around.
    """
    if sharding.mesh_of_trace() is not None:
        return part
    firsts = [jnp.ravel(x)[0] for x in jax.tree.leaves(sums) if jnp.issubdtype(x.dtype, jnp.floating)]
    some = sum(firsts)
    zero = jnp.where(jnp.isfinite(some), 0.0 * some, 0.0)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, part)


@dataclass(frozen=True)
class Averaging:
    """Moving average; decay 0 = none. With warm-up the decay is min(decay, (1+n)/(10+n)).

    sigma_rel: in place of the exponential one, power-function EMAs of these relative widths (optim.power_update). The
    first is the state's `ema`, the others are tracks beside it: {"ema_1": ..., ...} in the state's `variables`.
    """

    decay: float = 0.9999
    warmup: bool = True
    sigma_rel: tuple[float, ...] = ()

    def init(self, params: Tree) -> Tree:
        return jax.tree.map(jnp.copy, params) if self.decay else {}

    def update(self, ema: Tree, params: Tree, step: jax.Array) -> Tree:
        """step: optimiser steps done, 1 after the first."""
        if self.decay and self.sigma_rel:
            return power_update(ema, params, step, power_of(self.sigma_rel[0]))
        return ema_update(ema, params, step, self.decay, self.warmup) if self.decay else ema

    def init_tracks(self, params: Tree) -> Tree:
        """Those beside `ema`; {} for one average or none."""
        return {f"ema_{i}": jax.tree.map(jnp.copy, params) for i in range(1, len(self.sigma_rel))}

    def update_tracks(self, tracks: Tree, params: Tree, step: jax.Array) -> Tree:
        powers = {f"ema_{i}": power_of(x) for i, x in enumerate(self.sigma_rel)}
        return {name: power_update(track, params, step, powers[name]) for name, track in tracks.items()}

    def best(self, state: TrainState) -> Tree:
        """The averaged parameters where there are any."""
        return state.ema if self.decay else state.params


@dataclass(frozen=True)
class SampleSettings:
    """The samples that are made during training, with fixed noise."""

    latent_shape: tuple[int, int, int]
    timetable: Timetable
    eta: float = 0.0
    number: int = 16
    seed: int = 0


@dataclass(frozen=True)
class LDMTask:
    """Second stage: the UNet (and conditioner) on latents of a frozen first stage.

    `latent_scale` 0 means: measured over `scale_batches` batches before the first step and kept with the run.
    `by_channel`: a shift and a scale for each channel, given as `channels` or, if that is None, measured in that way.
    `scale_is_given`: frozen came with the latent scale of another run, which stays.
    """

    ldm: LDM
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    samples: SampleSettings
    averaging: Averaging = Averaging()
    accumulate: int = 1
    latent_scale: float = 0.0
    scale_batches: int = 16
    by_channel: bool = False
    channels: tuple[np.ndarray, np.ndarray] | None = field(default=None, compare=False)
    scale_is_given: bool = False
    programs: dict[Mesh, Programs] = field(default_factory=dict, compare=False, repr=False)

    columns = None
    headline = ("loss", "grad_norm", "learning_rate", "images_per_second")
    keeps_frozen = draws = True
    fewer_pictures = "--config.sample.number"

    def prepare(self, frozen: Tree, batches: Iterable[Batch], say: Callable) -> Tree:
        """frozen with its latent scale."""
        if self.scale_is_given:
            return frozen
        some = (b for _, b in zip(range(self.scale_batches), batches))
        if self.by_channel:
            shift, scales = self.channels or measure_channels(self.ldm, frozen, some, purpose_key(0, "latent_scale"))
            if self.channels is None:
                say(f"latent shift {shift} and scale {scales} of the channels, over {self.scale_batches} batches")
            return frozen | {"latent_shift": shift, "latent_scale": scales}
        scale = self.latent_scale
        if not scale:
            scale = measure_latent_scale(self.ldm, frozen, some, purpose_key(0, "latent_scale"))
            say(f"latent scale {scale:.5f}, measured over {self.scale_batches} batches")
        return frozen | {"latent_scale": np.float32(scale)}

    def init(self, key_data: jax.Array, frozen: Tree, batch: Batch) -> TrainState:
        params = self.ldm.init(purpose_of(jax.random.wrap_key_data(key_data), "init"), frozen, batch)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=self.averaging.init(params),
            opt_state=self.optimizer.init(params),
            variables=self.averaging.init_tracks(params),
            key=key_data,
        )

    def gradients(self, state: TrainState, frozen: Tree, batch: Batch) -> tuple[Tree, dict[str, jax.Array]]:
        def values(batch, keys, carry):
            grads, terms = jax.grad(self.ldm.loss, has_aux=True)(state.params, frozen, batch, keys)
            return (grads, terms), carry

        keys = sample_keys(state.step_key(), batch_size(batch))
        return accumulate(values, batch, keys, (), self.accumulate)[0]

    def step(self, state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, metrics = self.gradients(state, frozen, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),
            "learning_rate": self.learning_rate(state.step),
        }
        step = state.step + 1
        ema = self.averaging.update(state.ema, params, step)
        tracks = self.averaging.update_tracks(state.variables, params, step)
        return state.replace(step=step, params=params, ema=ema, opt_state=opt_state, variables=tracks), metrics

    def evaluate(self, state: TrainState, frozen: Tree, batch: Batch, i: int) -> dict[str, jax.Array]:
        """The training loss of the averaged parameters with the same noise at every evaluation."""
        keys = sharding.rows(sample_keys(jax.random.fold_in(purpose_key(0, "evaluate"), i), batch_size(batch)))
        return self.ldm.loss_terms(self.averaging.best(state), frozen, batch, keys, train=False)

    def pictures(
        self, state: TrainState, frozen: Tree, batch: Batch, mesh: Mesh, check: Check = no_check
    ) -> dict[str, np.ndarray]:
        """Samples under the conditions of the batch's images, taken again from the first where it has too few."""
        s, programs = self.samples, self._programs_on(mesh)
        indices = np.arange(programs.batch_size(s.number), dtype=np.int32)
        batch = {name: on_host(x)[indices % batch_size(batch)] for name, x in batch.items()}
        best, method = self.averaging.best(state), self._method()
        z = programs.sample(best, frozen, batch, s.seed, indices, method, lambda *_: check())
        return {"samples": programs.decode(frozen, z)[: s.number]}

    def compile_pictures(self, state: TrainState, frozen: Tree, batch: Batch, mesh: Mesh) -> list[Compiled]:
        programs = self._programs_on(mesh)
        number = programs.batch_size(self.samples.number)
        batch = {name: jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype) for name, x in batch.items()}
        programs.compile_sample(self.averaging.best(state), frozen, batch, number, self._method())
        return programs.programs

    def _programs_on(self, mesh: Mesh) -> Programs:
        return self.programs.setdefault(mesh, Programs(self.ldm, mesh))

    def _method(self) -> Method:
        s = self.samples
        return Method(s.latent_shape, s.timetable, eta=s.eta)

    def weights(self, state: TrainState, frozen: Tree) -> dict[str, tuple[Tree, Tree]]:
        averaged = {"averaged": (state.ema, frozen)} if self.averaging.decay else {}
        return averaged | {"raw": (state.params, frozen)}


@dataclass(frozen=True)
class FirstStageSettings:
    """Weights of the first-stage loss (losses.py). `family` is "kl" or "vq"; `n_embed` is 0 for KL.

    The generator sees the discriminator from step `disc_start` on; the discriminator learns from step
    `disc_learns_from` on (the original: the same step, so it enters untrained). With `disc_weight` 0 it is
    neither asked nor trained.
    """

    family: str
    n_embed: int = 0
    perceptual_weight: float = 1.0
    kl_weight: float = 1e-6
    codebook_weight: float = 1.0
    disc_start: int = 50_001
    disc_learns_from: int = 50_001
    disc_weight: float = 0.5
    disc_loss: str = "hinge"
    pictures: int = 8


@dataclass(frozen=True)
class FirstStageTask:
    """First stage: autoencoder and discriminator. One forward pass of the autoencoder updates both in each step.

    params = {"autoencoder", "discriminator"}; frozen = {"lpips"} or {}. In the original, the discriminator learns from
    the reconstruction by the already updated autoencoder, which needs a second forward pass.
    """

    model: nn.Module
    discriminator: NLayerDiscriminator
    lpips: LPIPS | None
    settings: FirstStageSettings
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    accumulate: int = 1
    programs: dict[Mesh, Programs] = field(default_factory=dict, compare=False, repr=False)

    columns = 4  # two pairs a row
    headline = ("l1", "lpips", "psnr", "logits_real", "logits_fake", "d_weight", "perplexity",
                "learning_rate", "images_per_second")  # fmt: skip
    keeps_frozen, draws = False, True
    fewer_pictures = ""

    def prepare(self, frozen: Tree, batches: Iterable[Batch], say: Callable) -> Tree:
        return frozen

    def init(self, key_data: jax.Array, frozen: Tree, batch: Batch) -> TrainState:
        model_key, disc_key = jax.random.split(purpose_of(jax.random.wrap_key_data(key_data), "init"))
        image = batch["image"][:1]
        disc = self.discriminator.init(disc_key, image)
        params = {
            "autoencoder": self.model.init(model_key, image)["params"],
            "discriminator": disc["params"],
        }
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema={},
            opt_state={name: self.optimizer.init(part) for name, part in params.items()},
            variables={"batch_stats": disc.get("batch_stats", {})},
            key=key_data,
        )

    def gradients(self, state: TrainState, frozen: Tree, batch: Batch) -> tuple[Tree, dict[str, jax.Array]]:
        return self._all_gradients(state, frozen, batch)[0]

    def _all_gradients(self, state: TrainState, frozen: Tree, batch: Batch):
        """((gradients, metrics), new running statistics) of the whole batch."""

        def values(batch, keys, stats):
            return self._gradients(state, frozen, batch["image"], keys, stats)

        keys = sample_keys(state.step_key(), len(batch["image"]))
        return accumulate(values, batch, keys, state.variables["batch_stats"], self.accumulate)

    def step(self, state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        (grads, metrics), stats = self._all_gradients(state, frozen, batch)
        params, opt_state = dict(state.params), dict(state.opt_state)
        for name, grad in grads.items():
            updates, opt_state[name] = self.optimizer.update(grad, state.opt_state[name], state.params[name])
            params[name] = optax.apply_updates(state.params[name], updates)
        metrics |= {
            "grad_norm": optax.global_norm(grads["autoencoder"]),
            "disc_grad_norm": optax.global_norm(grads.get("discriminator", {})),
            "param_norm": optax.global_norm(params),
            "learning_rate": self.learning_rate(state.step),
        }
        step = state.step + 1
        variables = {"batch_stats": stats}
        state = state.replace(step=step, params=params, opt_state=opt_state, variables=variables)
        return state, metrics

    def _gradients(self, state: TrainState, frozen: Tree, image: jax.Array, keys: jax.Array, stats: Tree):
        """(({"autoencoder", "discriminator"} gradients, metrics), new running statistics)."""
        s, params = self.settings, state.params

        posterior, rngs = stream(keys, POSTERIOR_STREAM), {"dropout": stream(keys, DROPOUT_STREAM)[0]}

        def forward(autoencoder):
            reconstruction, aux = self.model.apply({"params": autoencoder}, image, posterior, train=True, rngs=rngs)
            return (reconstruction, self._penalty(aux)), aux

        adversarial = s.disc_weight != 0

        def discriminate(disc, stats, x):
            logits, new = self.discriminator.apply(
                {"params": disc, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            return logits, new["batch_stats"]

        (reconstruction, penalty), pull_back, aux = jax.vjp(forward, params["autoencoder"], has_aux=True)
        _, grad, metrics, after_generator = losses.generator_objective(
            image,
            reconstruction,
            aux["features"],
            params["autoencoder"]["decoder"]["conv_out"]["kernel"],
            family=s.family,
            penalty=penalty,
            distance=self._distance(frozen, image),
            logits=(lambda x: discriminate(params["discriminator"], stats, x)) if adversarial else None,
            disc_factor=losses.adopt_weight(state.step, s.disc_start),
            disc_weight=s.disc_weight,
            perceptual_weight=s.perceptual_weight,
        )
        (autoencoder_grads,) = pull_back((grad, jnp.ones_like(penalty)))
        metrics |= losses.latent_statistics(aux["latents"]) | self._regularity(aux)
        if not adversarial:
            return ({"autoencoder": autoencoder_grads}, metrics), stats
        fake = jax.lax.stop_gradient(reconstruction)

        def discriminator_loss(disc):
            real, after_real = discriminate(disc, after_generator, image)
            false, after_both = discriminate(disc, after_real, fake)
            factor = losses.adopt_weight(state.step, s.disc_learns_from)
            value, disc_metrics = losses.discriminator_objective(real, false, factor, s.disc_loss)
            return value, (disc_metrics, after_both)

        disc_grads, (disc_metrics, stats) = jax.grad(discriminator_loss, has_aux=True)(params["discriminator"])
        metrics |= disc_metrics
        return ({"autoencoder": autoencoder_grads, "discriminator": disc_grads}, metrics), stats

    def _penalty(self, aux: dict) -> jax.Array:
        if self.settings.family == "kl":
            return self.settings.kl_weight * jnp.mean(aux["kl"])
        return self.settings.codebook_weight * aux["codebook_loss"]

    def _regularity(self, aux: dict) -> dict[str, jax.Array]:
        if self.settings.family == "kl":
            return {"kl": jnp.mean(aux["kl"])}
        use = losses.codebook_use(aux["indices"], self.settings.n_embed)
        return {"codebook_loss": aux["codebook_loss"]} | use

    def _distance(self, frozen: Tree, image: jax.Array) -> Callable[[jax.Array], jax.Array] | None:
        if self.lpips is None:
            return None
        return lambda x: self.lpips.apply({"params": frozen["lpips"]}, image, x)

    def evaluate(self, state: TrainState, frozen: Tree, batch: Batch, i: int) -> dict[str, jax.Array]:
        """l1, psnr and lpips per image, of the posterior's mode (KL) or the quantised latents (VQ)."""
        image = batch["image"]
        reconstruction = self._reconstruct(state, image)
        values = {
            "l1": jnp.abs(image - reconstruction).mean((1, 2, 3)),
            "psnr": losses.psnr(image, reconstruction),
        }
        if self.lpips is not None:
            values["lpips"] = self._distance(frozen, image)(reconstruction)
        return values

    def _reconstruct(self, state: TrainState, image: jax.Array) -> jax.Array:
        return self.model.apply({"params": state.params["autoencoder"]}, image)[0]

    def pictures(
        self, state: TrainState, frozen: Tree, batch: Batch, mesh: Mesh, check: Check = no_check
    ) -> dict[str, np.ndarray]:
        """Pairs: image, reconstruction."""
        image, programs = on_host(batch["image"])[: self.settings.pictures], self._programs_on(mesh)
        filled = programs.put(image[np.arange(programs.batch_size(len(image))) % len(image)])
        made = programs.run(self._reconstructing(state, filled))
        pairs = np.stack([image, on_host(made)[: len(image)]], axis=1)
        return {"reconstructions": pairs.reshape(-1, *image.shape[1:])}

    def compile_pictures(self, state: TrainState, frozen: Tree, batch: Batch, mesh: Mesh) -> list[Compiled]:
        image, programs = batch["image"], self._programs_on(mesh)
        number = programs.batch_size(min(self.settings.pictures, len(image)))
        filled = programs.placed(jax.ShapeDtypeStruct((number, *image.shape[1:]), image.dtype))
        return [programs.compile(self._reconstructing(state, filled))]

    def _reconstructing(self, state: TrainState, image: Tree) -> Call:
        return Call(("reconstruct",), self._reconstruct, (state, image))

    def _programs_on(self, mesh: Mesh) -> Programs:
        precision = jax.config.jax_default_matmul_precision  # that of training
        return self.programs.setdefault(mesh, Programs(self.model, mesh, precision=precision))

    def weights(self, state: TrainState, frozen: Tree) -> dict[str, tuple[Tree, Tree]]:
        first_stage = {"params": state.params["autoencoder"]}
        return {"raw": ({}, {"first_stage": first_stage, "latent_scale": jnp.float32(1.0)})}
