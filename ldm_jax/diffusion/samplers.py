"""Samplers: from noise to latents, z_T -> z_0 along a timetable.

Every sampler is called as `(denoise, z_T, timetable, keys, *, ...) -> z_0`, with
    denoise:    (z_t [B,...], t [B] int32) -> eps [B,...], whatever the network predicts; holds the guidance
    z_T:        [B,...] float32 standard normal, for instance `start_noise(keys, shape)`
    timetable:  Timetable [S], possibly padded; may be traced
    keys:       [B] jax keys, one per sample. Step k of sample i draws normal(fold_in(keys[i], k)), so a
                sample does not depend on the batch it is in. May be None where no noise is drawn.
    mask, z_known: inpainting. Where mask [B,...,1] is 1 the latent is held to z_known [B,...] noised to the
                current level; 0 is generated.
    noise_fn, known_noise_fn: k -> [B,...], in place of the keyed noise of the step and of z_known.
Numbers such as eta may be traced, so that another value compiles nothing.

A new sampler is one function, decorated with `@sampler(...)`. It takes the arguments above and returns a `Loop`: what
is carried from step to step, one step, and the entries to step over. The record `Sampler` runs the loop, all of it
(`__call__`) or some entries at a time (`advance`), so that progress can be shown. The body of the loop holds the
network once, also where a step evaluates it twice; padding entries are skipped.

Notation: a = alpha_bar now, a_prev = alpha_bar after the step, x0 = (z - sqrt(1-a) eps) / sqrt(a).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldm_jax.diffusion.timetable import Timetable

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
NoiseFn = Callable[[jax.Array], jax.Array]

# Streams of a sample's key beside the steps 0, 1, 2, ...; far above any number of steps.
_KNOWN_STREAM = 1 << 20
_START_STREAM = 1 << 24


class Step(NamedTuple):
    """One entry of the timetable inside the scan, with its number k; scalars."""

    k: jax.Array
    t: jax.Array
    a: jax.Array
    a_prev: jax.Array


class Loop(NamedTuple):
    """What a sampler does: `step(carry, entry) -> (carry, x0)` for every entry whose step t is not padding (-1).

    carry: before the first step; the latent z [B,...], or a tuple whose first entry is z.
    x0: the estimate [B,...] of the clean latent at this step, for previews.
    entries: (Step, number), arrays [N] each; the step of the timetable and the number of the evaluation.
    """

    carry: Any
    step: Callable[[Any, Any], tuple[Any, jax.Array]]
    entries: tuple[Step, jax.Array]


def latent(carry: Any) -> jax.Array:
    """z [B,...] of a loop's carry."""
    return carry[0] if isinstance(carry, tuple) else carry


@dataclass(eq=False)
class Sampler:
    """A sampler: `loop` makes its Loop; calling the record runs it.

    draws_noise: each step draws new noise (with `takes_eta`: only for eta above 0). takes_eta: has DDIM's option eta.
    spacing: the timetable's spacing that suits it (timetable.py), used unless another one is asked for.
    """

    name: str
    loop: Callable[..., Loop]
    draws_noise: bool = False
    takes_eta: bool = False
    spacing: str = "even"

    def __post_init__(self):
        update_wrapper(self, self.loop)

    def __call__(
        self, denoise: Denoise, z_T: jax.Array, timetable: Timetable, keys: jax.Array | None = None, **options
    ) -> jax.Array:
        """z_0 [B,...]: the whole loop, which can be differentiated."""
        loop = self.loop(denoise, z_T, timetable, keys, **options)

        def body(carry, entry):
            return lax.cond(entry[0].t >= 0, lambda c: loop.step(c, entry)[0], lambda c: c, carry), None

        return latent(lax.scan(body, loop.carry, loop.entries)[0])

    def __repr__(self) -> str:
        return f"<sampler {self.name}>"


def advance(loop: Loop, state: tuple[Any, jax.Array], first: jax.Array, last: jax.Array) -> tuple[Any, jax.Array]:
    """state = (carry, x0) after the entries first .. last-1 of the loop, none of them padding; both may be traced.

    One compiled program serves any number of steps, as only the entries asked for are visited.
    """

    def body(i: jax.Array, state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        return loop.step(state[0], jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), loop.entries))

    return lax.fori_loop(first, last, body, state)


SAMPLERS: dict[str, Sampler] = {}


def sampler(
    *, draws_noise: bool = False, takes_eta: bool = False, spacing: str = "even"
) -> Callable[[Callable[..., Loop]], Sampler]:
    """Decorator: the function that makes a Loop becomes a Sampler, in SAMPLERS under the function's name."""

    def register(loop: Callable[..., Loop]) -> Sampler:
        SAMPLERS[loop.__name__] = Sampler(loop.__name__, loop, draws_noise, takes_eta, spacing)
        return SAMPLERS[loop.__name__]

    return register


def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """z_T [B,*shape]: standard normal, from a stream of each key [B] that no sampler step uses."""
    return _normal(keys, _START_STREAM, shape)


@sampler(draws_noise=True, takes_eta=True)
def ddim(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None,
    *,
    eta: float | jax.Array = 0.0,
    temperature: float | jax.Array = 1.0,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    noise_fn: NoiseFn | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """DDIM (Song et al. 2021, eq. 12). eta in [0, 1]: 0 deterministic, 1 as noisy as the ancestral sampler.

    At eta 0 it is also Euler's method for the probability flow. keys may be None when eta is the number 0.
    The mask is applied before each step, as in the original.
    """
    random = not (isinstance(eta, int | float) and eta == 0)
    noise = _noise_fn(noise_fn, keys, z_T, 0) if random else None
    known = _known_fn(mask, z_known, known_noise_fn, keys, z_T)

    def step(z, x):
        s, _ = x
        z = known(z, s)
        eps = denoise(z, _batched(s.t, z))
        x0 = _x0(z, eps, s.a)
        if noise is None:
            return _move(z, eps, s.a, s.a_prev), x0
        sigma = eta * jnp.sqrt((1 - s.a_prev) / (1 - s.a) * (1 - s.a / s.a_prev))
        direction = jnp.sqrt(jnp.maximum(1 - s.a_prev - sigma**2, 0))  # rounding may leave it just below 0
        z = jnp.sqrt(s.a_prev) * x0 + direction * eps
        return z + sigma * temperature * noise(s.k), x0

    steps = steps_of(timetable)
    return Loop(z_T, step, (steps, steps.k))


@sampler(draws_noise=True)
def ddpm(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None,
    *,
    v_posterior: float | jax.Array = 0.0,
    temperature: float | jax.Array = 1.0,
    clip_x0: bool = False,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    noise_fn: NoiseFn | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Ancestral sampling from q(z_{t-1} | z_t, x0) (Ho et al. 2020, algorithm 2); meant for a full timetable.

    v_posterior mixes the variance between the posterior's (0) and beta (1). clip_x0 clips x0 to [-1, 1], for
    pixel models only. No noise is added in a step that ends at alpha_bar 1. On a shorter timetable beta is
    that of the whole stride. The mask is applied after each step at the level before it, as in the original.
    """
    noise = _noise_fn(noise_fn, keys, z_T, 0)
    known = _known_fn(mask, z_known, known_noise_fn, keys, z_T)

    def step(z, x):
        s, _ = x
        x0 = _x0(z, denoise(z, _batched(s.t, z)), s.a)
        if clip_x0:
            x0 = jnp.clip(x0, -1, 1)
        beta = 1 - s.a / s.a_prev
        mean = beta * jnp.sqrt(s.a_prev) / (1 - s.a) * x0 + (1 - s.a_prev) * jnp.sqrt(1 - beta) / (1 - s.a) * z
        variance = (1 - v_posterior) * beta * (1 - s.a_prev) / (1 - s.a) + v_posterior * beta
        sigma = jnp.where(s.a_prev < 1, jnp.sqrt(variance), 0.0)
        return known(mean + sigma * temperature * noise(s.k), s), x0

    steps = steps_of(timetable)
    return Loop(z_T, step, (steps, steps.k))


# Weights of eps and of the eps one, two, three steps ago, by evaluation. Row 0 tries the first step, row 1
# redoes it as Heun does, the others are Adams-Bashforth of order 2, 3 and 4.
_PLMS_WEIGHTS = (
    (1.0, 0.0, 0.0, 0.0),
    (1 / 2, 1 / 2, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@sampler()
def plms(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Pseudo linear multistep method (Liu et al. 2022): DDIM along an extrapolated eps, S + 1 evaluations.

    Evaluation j of the scan belongs to step max(j - 1, 0). Evaluation 1 looks at the end of the tried first
    step, at the second step's t (or again the first where there is only one), and is not remembered.
    """
    known = _known_fn(mask, z_known, known_noise_fn, keys, z_T)
    steps = steps_of(timetable)
    weights = jnp.asarray(_PLMS_WEIGHTS, jnp.float32)
    number = jnp.arange(len(steps.t) + 1)
    entries = jax.tree.map(lambda x: x[jnp.maximum(number - 1, 0)], steps)
    second = steps.t[min(1, len(steps.t) - 1)]
    entries = entries._replace(t=entries.t.at[1].set(jnp.where(second < 0, steps.t[0], second)))

    def evaluate(carry, x):
        (z, base, history), (s, j) = carry, x
        redo = j == 1
        z = jnp.where(redo, z, known(z, s))
        base = jnp.where(redo, base, z)
        eps = denoise(z, _batched(s.t, z))
        recent = jnp.stack([eps, *history])
        mixed = jnp.tensordot(weights[jnp.minimum(j, 4)], recent, 1, precision="highest")
        history = jnp.where(redo, history, recent[:3])
        return (_move(base, mixed, s.a, s.a_prev), base, history), _x0(base, mixed, s.a)

    return Loop((z_T, z_T, jnp.zeros((3, *z_T.shape), z_T.dtype)), evaluate, (entries, number))


@sampler()
def heun(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """Heun's second-order method (Karras et al. 2022, algorithm 1), 2 S - 1 evaluations.

    Works on z / sqrt(a) as a function of sqrt((1-a) / a), of which eps is the slope. The last step is one of
    Euler's, as there is no later t to evaluate at.
    """
    known = _known_fn(mask, z_known, known_noise_fn, keys, z_T)
    steps = steps_of(timetable)
    following = jnp.append(steps.t[1:], -1)
    entries = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), steps)
    entries = entries._replace(t=jnp.stack([steps.t, following], axis=1).ravel())

    def evaluate(carry, x):
        (z, base, before), (s, j) = carry, x
        redo = j % 2 == 1
        z = jnp.where(redo, z, known(z, s))
        base = jnp.where(redo, base, z)
        eps = denoise(z, _batched(s.t, z))
        mixed = jnp.where(redo, (before + eps) / 2, eps)
        # `mixed` equals eps where it is read again.
        return (_move(base, mixed, s.a, s.a_prev), base, mixed), _x0(base, mixed, s.a)

    return Loop((z_T, z_T, jnp.zeros_like(z_T)), evaluate, (entries, jnp.arange(len(entries.t))))


@sampler(spacing="log_snr")
def dpm_solver_pp_2m(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), S evaluations.

    Meant for 10-25 steps of a timetable with spacing "log_snr": even spacing in t makes steps of very unequal
    size in lambda at the clean end, where this method then extrapolates too far.

    Exponential integrator in lambda = log(sqrt(a) / sqrt(1-a)) with x0 extrapolated linearly. The first step,
    and a last one that ends at alpha_bar 1 where lambda is infinite, are of first order.
    """
    known = _known_fn(mask, z_known, known_noise_fn, keys, z_T)

    def step(carry, x):
        (z, x0_before, h_before), (s, k) = carry, x
        z = known(z, s)
        x0 = _x0(z, denoise(z, _batched(s.t, z)), s.a)
        ratio = jnp.sqrt((1 - s.a_prev) / s.a_prev * s.a / (1 - s.a))  # exp(-h), h the step in lambda
        first_order = (k == 0) | (ratio == 0)
        h = -jnp.log(jnp.where(ratio == 0, 1, ratio))
        x0_ahead = x0 + jnp.where(first_order, 0, h / (2 * h_before)) * (x0 - x0_before)
        scale = jnp.sqrt((1 - s.a_prev) / (1 - s.a))
        return (scale * z + jnp.sqrt(s.a_prev) * (1 - ratio) * x0_ahead, x0, h), x0

    steps = steps_of(timetable)
    return Loop((z_T, jnp.zeros_like(z_T), jnp.ones((), jnp.float32)), step, (steps, steps.k))


def get_sampler(name: str) -> Sampler:
    """The sampler of that name; an unknown name is an error that lists them."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is not one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def steps_of(timetable: Timetable) -> Step:
    """The timetable as arrays [S] to scan over, numbered. Padding comes last, so it does not renumber."""
    t = jnp.asarray(timetable.t, jnp.int32)
    a, a_prev = (jnp.asarray(x, jnp.float32) for x in (timetable.alpha_bar, timetable.alpha_bar_prev))
    return Step(jnp.arange(len(t)), t, a, a_prev)


def _x0(z: jax.Array, eps: jax.Array, a: jax.Array) -> jax.Array:
    return (z - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)


def _move(z: jax.Array, eps: jax.Array, a: jax.Array, a_prev: jax.Array) -> jax.Array:
    """The deterministic DDIM step from level a to level a_prev along eps."""
    return jnp.sqrt(a_prev) * _x0(z, eps, a) + jnp.sqrt(1 - a_prev) * eps


def _batched(t: jax.Array, z: jax.Array) -> jax.Array:
    return jnp.full(z.shape[:1], t, jnp.int32)


def _normal(keys: jax.Array, stream: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B,*shape], row i from fold_in(keys[i], stream) alone."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float32))(keys)


def _noise_fn(given: NoiseFn | None, keys: jax.Array | None, z: jax.Array, stream: int) -> NoiseFn:
    """The given source of noise, or the keyed one whose draw k is stream + k of each key."""
    if given is not None:
        return given
    if keys is None or keys.shape != z.shape[:1]:
        found = None if keys is None else keys.shape
        raise ValueError(f"noise is drawn: keys must have shape {z.shape[:1]}, one per sample, got {found}")
    return lambda k: _normal(keys, stream + k, z.shape[1:])


def _known_fn(mask, z_known, given: NoiseFn | None, keys: jax.Array | None, z_T: jax.Array):
    """(z, step) -> z, where the mask is 1 replaced by z_known at the step's noise level; z without a mask."""
    if (mask is None) != (z_known is None):
        given_one = "z_known" if mask is None else "mask"
        raise ValueError(f"mask and z_known belong together, only {given_one} was given")
    if mask is None:
        return lambda z, s: z
    noise = _noise_fn(given, keys, z_T, _KNOWN_STREAM)

    def known(z, s):
        noised = jnp.sqrt(s.a) * z_known + jnp.sqrt(1 - s.a) * noise(s.k)
        return mask * noised + (1 - mask) * z

    return known
