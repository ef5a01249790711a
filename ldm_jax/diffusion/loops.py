"""What samplers are made of: the record `Sampler`, its `Loop`, and the pieces that their steps share.

The conventions are in samplers.py. Notation: a = alpha_bar now, a_prev = alpha_bar after the step.
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
    from_pure_noise: can begin at alpha_bar 0, as flow models and those of zero terminal SNR do.
    """

    name: str
    loop: Callable[..., Loop]
    draws_noise: bool = False
    takes_eta: bool = False
    spacing: str = "even"
    from_pure_noise: bool = True

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
    *, draws_noise: bool = False, takes_eta: bool = False, spacing: str = "even", from_pure_noise: bool = True
) -> Callable[[Callable[..., Loop]], Sampler]:
    """Decorator: the function that makes a Loop becomes a Sampler, in SAMPLERS under the function's name."""

    def register(loop: Callable[..., Loop]) -> Sampler:
        record = Sampler(loop.__name__, loop, draws_noise, takes_eta, spacing, from_pure_noise)
        SAMPLERS[loop.__name__] = record
        return record

    return register


def start_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """z_T [B,*shape]: standard normal, from a stream of each key [B] that no sampler step uses."""
    return normal(keys, _START_STREAM, shape)


def names_for(pure_noise: bool) -> list[str]:
    """The samplers of a model; pure_noise: of one that begins at alpha_bar 0 (a schedule's `pure_noise`)."""
    return [name for name, record in SAMPLERS.items() if record.from_pure_noise or not pure_noise]


def get_sampler(name: str) -> Sampler:
    """The sampler of that name; an unknown name is an error that lists them."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is not one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def steps_of(timetable: Timetable) -> Step:
    """The timetable as arrays [S] to scan over, numbered. Padding comes last, so it does not renumber."""
    t = jnp.asarray(timetable.t, jnp.int32)
    a, a_prev = (jnp.asarray(x, float) for x in (timetable.alpha_bar, timetable.alpha_bar_prev))
    return Step(jnp.arange(len(t)), t, a, a_prev)


def x0_of(z: jax.Array, eps: jax.Array, a: jax.Array) -> jax.Array:
    """The clean latent x0 = (z - sqrt(1-a) eps) / sqrt(a)."""
    return (z - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)


def move(z: jax.Array, eps: jax.Array, a: jax.Array, a_prev: jax.Array) -> jax.Array:
    """The deterministic DDIM step from level a to level a_prev along eps."""
    return jnp.sqrt(a_prev) * x0_of(z, eps, a) + jnp.sqrt(1 - a_prev) * eps


def batched(t: jax.Array, z: jax.Array) -> jax.Array:
    """t [] for each sample of z [B,...]: [B] int32."""
    return jnp.full(z.shape[:1], t, jnp.int32)


def normal(keys: jax.Array, stream: int | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B,*shape], row i from fold_in(keys[i], stream) alone."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float32))(keys)


def noise_source(given: NoiseFn | None, keys: jax.Array | None, z: jax.Array, stream: int) -> NoiseFn:
    """The given source of noise, or the keyed one whose draw k is stream + k of each key."""
    if given is not None:
        return given
    if keys is None or keys.shape != z.shape[:1]:
        found = None if keys is None else keys.shape
        raise ValueError(f"noise is drawn: keys must have shape {z.shape[:1]}, one per sample, got {found}")
    return lambda k: normal(keys, stream + k, z.shape[1:])


def known_source(mask, z_known, given: NoiseFn | None, keys: jax.Array | None, z_T: jax.Array):
    """(z, step) -> z, where the mask is 1 replaced by z_known at the step's noise level; z without a mask."""
    if (mask is None) != (z_known is None):
        given_one = "z_known" if mask is None else "mask"
        raise ValueError(f"mask and z_known belong together, only {given_one} was given")
    if mask is None:
        return lambda z, s: z
    noise = noise_source(given, keys, z_T, _KNOWN_STREAM)

    def known(z, s):
        noised = jnp.sqrt(s.a) * z_known + jnp.sqrt(1 - s.a) * noise(s.k)
        return mask * noised + (1 - mask) * z

    return known
