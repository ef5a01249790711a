"""The compiled programs of a diffusion model: conditions, sampling steps, encoder, decoder, inversion.

A program is compiled once for a size of image, a batch size, a sampler, and the kinds of guidance that are used. Seeds,
prompts, labels, scales, eta and the number of steps (up to all training steps) are data: they compile nothing.
The batch is split over all devices of the mesh; image i of a seed is the same on any number of devices.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.stages import Compiled

from ldm_jax import editing, generate
from ldm_jax.diffusion import starts
from ldm_jax.diffusion.samplers import advance, latent, start_noise
from ldm_jax.diffusion.timetable import Timetable, pad
from ldm_jax.generate import DiffusionModel
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.ldm import latents_of
from ldm_jax.models.lpips import LPIPS

Tree = Any
Batch = dict[str, np.ndarray]
OnStep = Callable[[int, int, Callable[[], np.ndarray]], None]  # (steps done, all steps, images of the estimate)


def default_mesh() -> Mesh:
    """All devices, of all hosts, share the batch."""
    return Mesh(np.array(jax.devices()), ("data",))


def on_host(x: jax.Array) -> np.ndarray:
    """The whole array, on every host; all hosts must ask for it."""
    if not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


@dataclass(frozen=True)
class Method:
    """How to sample: what the program depends on (shape, sampler, networks), and numbers that it is given.

    timetable: the steps to run, not padded. guidance: scale of classifier-free guidance, or one for each of several
    conditions, None = without; guidance_rescale: None = off. weaker: (a DiffusionModel of the same latents, {"params",
    and "frozen": what it has in place of the model's}) for autoguidance, with weaker_scale. interval: (low, high) of
    sigma for both, None = all. guide_scale: weight of the batch's "guide" (reconstruction guidance); lpips: (LPIPS, its
    parameters) to compare by, None = pixels. classifier: (LatentClassifier, its parameters, their step),
    classifier_scale: its weight.
    """

    latent_shape: tuple[int, int, int]
    timetable: Timetable
    sampler: str = "ddim"
    lpips: tuple[LPIPS, Tree] | None = None
    classifier: tuple[LatentClassifier, Tree, int | None] | None = None
    eta: float = 0.0
    guidance: float | tuple[float, ...] | None = None
    guidance_rescale: float | None = None
    guide_scale: float = 1.0
    classifier_scale: float = 1.0
    weaker: tuple[DiffusionModel, Tree] | None = None
    weaker_scale: float = 1.0
    interval: tuple[float, float] | None = None

    def numbers(self) -> dict[str, np.ndarray]:
        given = dict(eta=self.eta, guide_scale=self.guide_scale, classifier_scale=self.classifier_scale)
        given |= {} if self.guidance is None else {"guidance": self.guidance}
        given |= {} if self.guidance_rescale is None else {"guidance_rescale": self.guidance_rescale}
        given |= {} if self.weaker is None else {"weaker_scale": self.weaker_scale}
        given |= {} if self.interval is None else {"interval": self.interval}
        return {name: np.float32(value) for name, value in given.items()}


@lru_cache(maxsize=1024)
def _place(where: Sharding | None) -> Sharding | None:
    """The same for shardings that say the same: the spec of one may end in None, which means nothing."""
    if not isinstance(where, NamedSharding):
        return where
    parts = list(where.spec)
    while parts and parts[-1] is None:
        parts.pop()
    return NamedSharding(where.mesh, PartitionSpec(*parts), memory_kind=where.memory_kind)


@dataclass(frozen=True)
class Call:
    """fn(*args) as one program. It is compiled once for a `key` and for the arguments' shapes and places.

    key: all that the program depends on besides. args: arrays, or jax.ShapeDtypeStruct where nothing is to run.
    out_shardings: where results go, None = as the compiler likes.
    """

    key: tuple
    fn: Callable
    args: tuple
    out_shardings: Tree = None


@dataclass(kw_only=True)
class CompiledPrograms:
    """Programs that are compiled once. precision: of float32 products, None = the backend's default.

    compiled: how many there are; compile_seconds: what they took.
    """

    precision: str | None = None
    compile_seconds: float = 0.0

    def __post_init__(self):
        self._programs: dict[Any, Compiled] = {}

    @property
    def compiled(self) -> int:
        return len(self._programs)

    @property
    def programs(self) -> list[Compiled]:
        return list(self._programs.values())

    def compile(self, call: Call) -> Compiled:
        """The program of the call."""
        leaves, structure = jax.tree.flatten(call.args)
        places = tuple((x.shape, x.dtype, _place(getattr(x, "sharding", None))) for x in leaves)
        key = call.key, structure, places
        if key not in self._programs:
            began = time.perf_counter()
            jitted = jax.jit(call.fn, out_shardings=call.out_shardings)
            with jax.default_matmul_precision(self.precision):
                self._programs[key] = jitted.lower(*call.args).compile()
            self.compile_seconds += time.perf_counter() - began
        return self._programs[key]

    def run(self, call: Call) -> Any:
        """The results of the call, by its program."""
        return self.compile(call)(*call.args)

    def shapes(self, call: Call) -> Tree:
        """Of the results, as jax.ShapeDtypeStruct with their places. Compiles the program, and computes nothing."""
        program = self.compile(call)
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            program.out_info, program.output_shardings,
        )  # fmt: skip


@dataclass
class Programs(CompiledPrograms):
    """The programs of `model` on `mesh`, compiled when they are first needed, or before. Parameters are arguments: they
    may change, their shapes may not. The methods `compile_...` take shapes in place of arrays and compute nothing."""

    model: DiffusionModel
    mesh: Mesh = field(default_factory=default_mesh)

    def batch_size(self, wanted: int) -> int:
        """The smallest batch from `wanted` on that divides into the devices."""
        return -(-wanted // self.mesh.size) * self.mesh.size

    def sample(
        self, params: Tree, frozen: Tree, batch: Batch, seed: int, indices: np.ndarray, method: Method,
        on_step: OnStep | None = None,
    ) -> jax.Array:  # fmt: skip
        """Latents z [B,h,w,c] of the images `indices` [B] of `seed`, on the devices.

        batch: fields [B,...] of the condition; also "z" [B,h,w,c], a latent to noise and begin from, or "z_T", where to
        begin; "guide" [B,h',w',C] and "label" [B] for guidance. on_step is called after each step: (k, of S, a
        function that makes the images [B,H,W,C] which the model expects at that step).
        """
        fixed, batch = (self._tables(method.timetable), method.numbers()), self.put(batch)
        indices = self.put(np.asarray(indices, np.int32))
        start, carry, x0, counts = self.run(self._beginning(method, fixed, params, frozen, batch, seed, indices))
        entries, done = int(on_host(counts["entries"])), on_host(counts["done"])
        steps = partial(self._stepping, method, fixed, params, frozen, batch, start)
        if on_step is None:
            return latent(self.run(steps((carry, x0), 0, entries))[0])
        for i in range(entries):
            carry, x0 = self.run(steps((carry, x0), i, i + 1))
            if i + 1 == entries or done[i + 1] > done[i]:
                jax.block_until_ready(x0)  # the step is done, not only begun
                on_step(int(done[i]), len(method.timetable.t), partial(self.decode, frozen, x0))
        return latent(carry)

    def compile_sample(self, params: Tree, frozen: Tree, batch: Tree, number: int, method: Method) -> None:
        """The programs of `sample` for `number` images, and of `decode` of what it gives."""
        fixed, batch = (self._tables(method.timetable), method.numbers()), self.placed(batch)
        indices = self.placed(jax.ShapeDtypeStruct((number,), np.int32))
        start, carry, x0, _ = self.shapes(self._beginning(method, fixed, params, frozen, batch, 0, indices))
        carry, _ = self.shapes(self._stepping(method, fixed, params, frozen, batch, start, (carry, x0), 0, 1))
        self.compile(self._decoding(frozen, self.placed(latent(carry))))

    def _beginning(self, method: Method, fixed: Tree, params, frozen, batch, seed, indices) -> Call:
        """The call of `_begin`. fixed: the padded timetable and the numbers of `method`."""
        weaker, trees = method.weaker or (None, {})
        begin = partial(_begin, self.model, method.sampler, method.latent_shape, weaker, self._split)
        given = params, frozen, trees, batch, np.int32(seed), indices, *fixed
        return Call(("begin", *_key(method)), begin, given)

    def _stepping(self, method: Method, fixed: Tree, params, frozen, batch, start, state, first, last) -> Call:
        """The call of `_steps`. start, state: results of `_begin`; state also of a call before."""
        classifier, classifier_params, _ = method.classifier or (None, {}, None)
        lpips, lpips_params = method.lpips or (None, {})
        weaker, trees = method.weaker or (None, {})
        judges = {"classifier": classifier_params, "lpips": lpips_params, "weaker": trees.get("params", {})}
        steps = partial(_steps, self.model, method.sampler, lpips, classifier, weaker)
        given = params, frozen, judges, batch, start, *fixed, state, np.int32(first), np.int32(last)
        stays = jax.tree.map(lambda x: x.sharding, state)
        return Call(("steps", *_key(method)), steps, given, out_shardings=stays)

    def _encoding(self, frozen: Tree, image: Tree) -> Call:
        return Call(("encode",), self.model.encode, (frozen, image))

    def _decoding(self, frozen: Tree, z: Tree) -> Call:
        return Call(("decode",), self.model.decode, (frozen, z))

    def _tables(self, timetable: Timetable) -> Timetable:
        """The timetable as the programs take it, padded to one length for any number of steps."""
        padded = pad(timetable, self.model.schedule.timesteps)
        return Timetable(*(np.asarray(x, kind) for x, kind in zip(padded, (np.int32, np.float32, np.float32))))

    def decode(self, frozen: Tree, z: jax.Array | np.ndarray) -> np.ndarray:
        """Images [B,H,W,C] float32, about [-1,1], on the host, for z [B,h,w,c] as `sample` gives it, or an array."""
        if isinstance(z, jax.Array):
            z = jax.device_put(z, self._rows)
        else:
            z = self.put(np.asarray(z, np.float32))
        return on_host(self.run(self._decoding(frozen, z)))

    def encode(self, frozen: Tree, image: np.ndarray) -> np.ndarray:
        """Scaled latents [B,h,w,c] of images [B,H,W,C] in [-1,1]; of a posterior its mode."""
        return on_host(self.run(self._encoding(frozen, self.put(image))))

    def compile_reconstruction(self, frozen: Tree, image: Tree) -> None:
        """The programs of `encode`, and of `decode` of what it gives, for images of this shape."""
        z = self.shapes(self._encoding(frozen, self.placed(image)))
        self.compile(self._decoding(frozen, self.placed(z)))

    def invert(self, params: Tree, frozen: Tree, batch: Batch, image: np.ndarray, timetable: Timetable) -> np.ndarray:
        """Noise z_T [B,h,w,c] from which ddim makes the images [B,H,W,C] again (editing.invert_image)."""
        invert = partial(editing.invert_image, self.model)
        given = params, frozen, self.put(batch), self.put(image), self._tables(timetable)
        return on_host(self.run(Call(("invert",), invert, given)))

    @property
    def _rows(self) -> NamedSharding:
        """The first axis over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

    def _split(self, values: Tree, z: jax.Array) -> Tree:
        """Within a program: the same values, those of the batch's samples split over the mesh: arrays [B,...], and
        several latents [...,*z.shape] of each. The compiler would keep zeros to begin with whole on every device."""

        def one(x: jax.Array) -> jax.Array:
            axis = x.ndim - z.ndim if x.shape[-z.ndim :] == z.shape else 0
            if x.shape[axis : axis + 1] != z.shape[:1]:
                return x
            spec = PartitionSpec(*(None,) * axis, self.mesh.axis_names)
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

        return jax.tree.map(one, values)

    def put(self, values: Tree) -> Tree:
        """Arrays [B,...], the same on every host, split over the mesh; B must divide into its devices."""

        def one(x: np.ndarray) -> jax.Array:
            x = np.asarray(x)
            x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)  # float64 to float32
            return jax.make_array_from_callback(x.shape, self._rows, lambda index: x[index])

        return jax.tree.map(one, values)

    def placed(self, shapes: Tree) -> Tree:
        """The shapes of what `put` makes of arrays, or of their shapes."""

        def one(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=self._rows)

        return jax.tree.map(one, shapes)


def _key(method: Method) -> tuple:
    """What the programs of a method depend on besides the arguments' shapes."""
    lpips, classifier, weaker = method.lpips, method.classifier, method.weaker
    others = lpips and lpips[0], classifier and id(classifier[0]), weaker and id(weaker[0])
    return method.sampler, method.latent_shape, *others


def sampling(model: DiffusionModel, method: Method) -> Callable[[Tree, Tree, Tree, jax.Array, jax.Array], jax.Array]:
    """(params, frozen, batch, seed, indices [B]) -> z [B,h,w,c]: the programs of `Programs.sample` in one function.

    For exactly the steps of `method`. Benchmarks measure it; it can be exported or used within another program.
    """
    lpips, lpips_params = method.lpips or (None, {})
    classifier, classifier_params, _ = method.classifier or (None, {}, None)
    weaker, weaker_trees = method.weaker or (None, {})
    judges = {"classifier": classifier_params, "lpips": lpips_params, "weaker": weaker_trees.get("params", {})}
    numbers = jax.tree.map(jnp.asarray, method.numbers())
    entries = evaluations(method)

    def run(params, frozen, batch, seed, indices):
        start, carry, x0, _ = _begin(
            model, method.sampler, method.latent_shape, weaker, lambda values, _: values,
            params, frozen, weaker_trees, batch, seed, indices, method.timetable, numbers,
        )  # fmt: skip
        given = params, frozen, judges, batch, start, method.timetable, numbers
        state = _steps(model, method.sampler, lpips, classifier, weaker, *given, (carry, x0), 0, entries)
        return latent(state[0])

    return run


def evaluations(method: Method) -> int:
    """How often the network is called for an image; a number, so that a loop's length is known."""
    key, z_T = generate.image_keys(0, np.zeros(1, np.int32)), np.zeros((1, *method.latent_shape), np.float32)
    return int(generate.valid_entries(generate.make_loop(method.sampler, _no_network, z_T, method.timetable, key)))


def _begin(
    model, sampler, latent_shape, weaker, split,
    params, frozen, weaker_trees, batch, seed, indices, timetable, numbers,
):  # fmt: skip
    """(what stays the same in all steps, the loop's carry, its estimate of the clean latent, counts)."""
    keys = generate.image_keys(seed, indices)
    cond, null = generate.conditions(model, params, frozen, batch, numbers.get("guidance"))
    if "z" in batch:
        z_T = starts.noised(batch["z"], keys, timetable)
    else:
        z_T = batch["z_T"] if "z_T" in batch else start_noise(keys, latent_shape)
    loop = generate.make_loop(sampler, _no_network, z_T, timetable, keys, numbers["eta"])
    counts = {"entries": generate.valid_entries(loop), "done": loop.entries[0].k + 1}
    start = {"keys": keys, "z_T": z_T, "cond": cond, "null": null}
    if weaker is not None:
        kept = latents_of(frozen) | weaker_trees["frozen"]
        start["weaker"] = weaker.condition(weaker_trees["params"], kept, batch)
    return *split((start, loop.carry, jnp.zeros_like(z_T)), z_T), counts


def _no_network(z, t):
    raise AssertionError("a sampler calls its network in a step, not before the loop")


def _steps(
    model, sampler, lpips, classifier, weaker,
    params, frozen, judges, batch, start, timetable, numbers, state, first, last,
):  # fmt: skip
    """(carry, estimate) after the loop's entries first .. last - 1."""
    log_p = judge = None
    if "guide" in batch:
        distance = editing.perceptual(lpips, judges["lpips"]) if lpips else editing.half_square
        log_p = editing.matches(model, frozen, batch["guide"], numbers["guide_scale"], distance)
    if classifier is not None:

        def judge(z_t, t):
            return numbers["classifier_scale"] * classifier.log_p(judges["classifier"], z_t, t, batch["label"])

    guidance = numbers.get("guidance")
    rescale = numbers.get("guidance_rescale")
    worse = generate.denoiser(weaker, judges["weaker"], start["weaker"]) if weaker is not None else None
    denoise = generate.denoiser(
        model, params, start["cond"], start["null"], guidance, log_p, judge, rescale,
        numbers.get("interval"), worse, numbers.get("weaker_scale", 1.0),
    )  # fmt: skip
    loop = generate.make_loop(sampler, denoise, start["z_T"], timetable, start["keys"], numbers["eta"])
    return advance(loop, state, first, last)
