"""The work that is measured, of any recipe: training step, forward, sampling, encode and decode, on made-up weights.

    model = make_model(config)
    compiled = train(model, batch_size).compile()     # knows the seconds that took
    compiled()                                        # one call, waits until it is done
    formula(train, model, batch_size)                 # what the networks say, whatever a backend makes of it

Weights are random but not zero anywhere, so that outputs depend on all of them and can be compared.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, process, programs, tree
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.models import kernels
from ldm_jax.programs import Method, sampling
from ldm_jax.training import setup
from ldm_jax.training.plan import abstract
from ldm_jax.training.state import TrainState

Tree = Any


def fill(shapes: Tree, seed: int = 0) -> Tree:
    """Arrays (numpy) of these shapes: kernels random / sqrt(fan in), scales near 1, biases near 0, codes of size 1."""
    rng = np.random.default_rng(seed)

    def one(name: str, s: jax.ShapeDtypeStruct) -> np.ndarray:
        if not jnp.issubdtype(s.dtype, jnp.floating):
            return np.zeros(s.shape, s.dtype)
        noise, leaf = rng.standard_normal(s.shape, np.float32), name.rsplit("/", 1)[-1]
        if leaf == "kernel":
            noise *= (s.size // s.shape[-1]) ** -0.5
        elif leaf in ("scale", "var"):
            noise = 1 + 0.1 * noise
        elif leaf != "embedding":
            noise *= 0.1
        return noise.astype(s.dtype)

    leaves = [one(name, s) for name, s in tree.flatten(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


@dataclass(frozen=True)
class Model:
    """A recipe with weights on the host. For an LDM `state.params` is its params, `frozen` its first stage and scale.

    state: TrainState, optimiser state zero, EMA = params. latent: (h, w, c).
    """

    config: Any
    task: Any
    state: TrainState
    frozen: Tree
    latent: tuple[int, int, int]

    @property
    def is_ldm(self) -> bool:
        return self.config.task == "ldm"

    @property
    def first_stage(self) -> Tree:
        """The first stage's variables."""
        return self.frozen["first_stage"] if self.is_ldm else {"params": self.state.params["autoencoder"]}

    @cached_property
    def network(self):
        """The first stage's module."""
        return build.first_stage(self.config)

    def batch(self, size: int, seed: int = 0) -> dict[str, np.ndarray]:
        """A training batch: images in [-1,1], other floats normal, integers 0."""
        rng, shapes = np.random.default_rng(seed), build.batch_shapes(self.config, size)
        batch = {k: fill(s, seed) for k, s in shapes.items()}
        return batch | {"image": rng.uniform(-1, 1, shapes["image"].shape).astype(np.float32)}

    def latents(self, size: int, seed: int = 0) -> np.ndarray:
        """z [B,h,w,c] to decode: for VQ rows of the codebook, so that rounding cannot choose another row."""
        rng, shape = np.random.default_rng(seed), (size, *self.latent)
        if self.config.first_stage.kind != "vq":
            return rng.standard_normal(shape, np.float32)
        codes = self.first_stage["params"]["quantize"]["embedding"]["embedding"]
        return np.asarray(codes)[rng.integers(0, len(codes), shape[:3])]


def make_model(config) -> Model:
    """Raises what `abstract` raises."""
    task, shapes, frozen_shapes = abstract(config)
    params = fill(shapes.params)
    # Views of one zero: the host's copy of the optimiser takes no memory.
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), (shapes.opt_state, shapes.step))
    state = shapes.replace(
        params=params, ema=params if shapes.ema else {}, opt_state=zeros[0], step=zeros[1],
        variables=fill(shapes.variables), key=np.asarray(jax.random.key_data(jax.random.key(0))),
    )  # fmt: skip
    frozen = fill(frozen_shapes, seed=1)
    if config.task == "ldm":
        frozen["latent_scale"] = np.full(frozen_shapes["latent_scale"].shape, config.latent_scale or 1.0, np.float32)
    return Model(config, task, state, frozen, build.latent_shape(config))


@dataclass(frozen=True)
class Program:
    """A function and its arguments. carries: its first output is its first argument in the next call (donated)."""

    fn: Callable
    args: tuple
    carries: bool = False

    def compile(self, precision: str | None = None, options: dict | None = None) -> "Compiled":
        """precision: of float32 products, "highest" for comparisons; None = JAX's default (on a GPU: TF32).

        options: of the compiler.
        """
        # Copies: donation must not take the host's arrays.
        args = jax.block_until_ready(jax.tree.map(jnp.array, self.args))
        began = time.perf_counter()
        with jax.default_matmul_precision(precision):
            lowered = jax.jit(self.fn, donate_argnums=0 if self.carries else ()).lower(*args)
        middle = time.perf_counter()
        compiled = lowered.compile(options)
        done = time.perf_counter()
        return Compiled(compiled, args, self.carries, middle - began, done - middle)


@dataclass
class Compiled:
    """A compiled program; calling it runs it once and waits."""

    executable: Any
    args: tuple = field(repr=False)
    carries: bool
    trace_s: float
    compile_s: float

    def __call__(self) -> Any:
        out = jax.block_until_ready(self.executable(*self.args))
        if self.carries:
            self.args = (out[0], *self.args[1:])
        return out

    @property
    def memory_gib(self) -> float | None:
        """Arguments, results and temporaries on one device, as planned by the compiler."""
        planned = process.planned_gib(self.executable)
        return None if planned is None else sum(planned)


def train(model: Model, size: int) -> Program:
    """(state, frozen, batch) -> (state, metrics): the step of train.py, all of it."""
    return Program(model.task.step, (model.state, model.frozen, model.batch(size)), carries=True)


def condition(model: Model, size: int) -> Tree:
    """Cond of a batch of this size, as the model's own conditioner makes it."""
    ldm = model.task.ldm
    return jax.jit(ldm.condition)(model.state.params, model.frozen, model.batch(size))


def forward(model: Model, size: int) -> Program:
    """(params, z_t, t, cond) -> the UNet's output [B,h,w,c]."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((size, *model.latent), np.float32)
    t = rng.integers(0, model.config.diffusion.timesteps, size).astype(np.int32)
    return Program(model.task.ldm.predict, ({"unet": model.state.params["unet"]}, z, t, condition(model, size)))


def calls(model: Model, size: int, number: int) -> Program:
    """(params, z, t, cond) -> z after so many bare calls of the UNet in one program, each of what the last one gave.

    Each is at one training step less: of equal ones the compiler makes the time embedding once, before the loop.
    """
    predict = model.task.ldm.predict

    def run(params, z, t, cond):
        def call(i, z):
            return predict(params, z, jnp.maximum(t - i, 0), cond).astype(z.dtype)

        return jax.lax.fori_loop(0, number, call, z)

    return Program(run, forward(model, size).args)


def sample(model: Model, size: int, steps: int, sampler: str = "ddim", guidance: float | None = None) -> Program:
    """(params, frozen, batch) -> latents after `steps` sampling steps: a pipeline's programs in one."""
    ldm = model.task.ldm
    method = Method(model.latent, make_timetable(ldm.schedule, steps), sampler, guidance=guidance)
    run = partial(sampling(ldm, method), seed=0, indices=np.arange(size))
    return Program(run, (model.state.params, model.frozen, model.batch(size)))


def evaluations(model: Model, steps: int, sampler: str) -> int:
    """How often a sampler calls the network."""
    return programs.evaluations(Method(model.latent, make_timetable(model.task.ldm.schedule, steps), sampler))


def decode(model: Model, size: int) -> Program:
    """(variables, z) -> images [B,H,W,C]."""
    return Program(partial(model.network.apply, method="decode"), (model.first_stage, model.latents(size)))


def encode(model: Model, size: int) -> Program:
    """(variables, images) -> z [B,h,w,c]; KL: the mode."""
    image = model.batch(size)["image"]
    return Program(partial(model.network.apply, method="latents"), (model.first_stage, image))


def formula(make: Callable[..., Program], model: Model, *args) -> Any:
    """The jaxpr of make(model, *args) in plain formulations and without recomputed activations."""
    config = model.config.copy_and_resolve_references()
    for network in ("unet", "dit"):
        if network in config:
            config[network].remat = False
    with kernels.plain():
        program = make(replace(model, config=config, task=setup.task(config)), *args)
        return jax.make_jaxpr(program.fn)(*program.args)
