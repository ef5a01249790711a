"""Exponential integrators in lambda = log(sqrt(a) / sqrt(1-a)): DPM-Solver++ and UniPC. See samplers.py.

With x0(lambda) the clean latent that the network expects, the probability flow is solved exactly but for x0:
    z' = sqrt((1-a') / (1-a)) z + sqrt(a') integral_0^h e^(tau-h) x0(lambda + tau) dtau,   h = lambda' - lambda
(Lu et al. 2022, arXiv 2211.01095, proposition 4.1). The samplers differ in how they extrapolate x0.
Notation: a = alpha_bar now, a_prev = a' = alpha_bar after the step. Where a_prev is 1, lambda' is infinite.
"""

from collections.abc import Callable
from math import factorial

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.loops import (
    Denoise,
    Loop,
    NoiseFn,
    Step,
    batched,
    known_source,
    noise_source,
    sampler,
    steps_of,
    x0_of,
)
from ldm_jax.diffusion.timetable import Timetable

Known = Callable[[jax.Array, Step], jax.Array]


def _moving_steps(timetable: Timetable) -> tuple[Step, jax.Array]:
    """(`steps_of`, their places 0, 1, ...). The steps that end where they begin are left out: these change nothing, and
    h = 0 cannot be divided by. They become padding, which comes last; the others keep their k."""
    steps = steps_of(timetable)
    steps = steps._replace(t=jnp.where(steps.a == steps.a_prev, -1, steps.t))
    order = jnp.argsort(steps.t < 0, stable=True)
    return jax.tree.map(lambda x: x[order], steps), jnp.arange(len(order))


def _extrapolated(
    ratio: jax.Array, k: jax.Array, x0: jax.Array, x0_before: jax.Array, h_before: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(h, x0 extrapolated linearly over half a step) of step k, whose e^(-h) is `ratio`. The first step, and one to
    alpha_bar 1, keep x0."""
    first_order = (k == 0) | (ratio == 0)
    h = -jnp.log(jnp.where(ratio == 0, 1, ratio))
    return h, x0 + jnp.where(first_order, 0, h / (2 * h_before)) * (x0 - x0_before)


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
    known = known_source(mask, z_known, known_noise_fn, keys, z_T)

    def step(carry, x):
        (z, x0_before, h_before), (s, k) = carry, x
        z = known(z, s)
        x0 = x0_of(z, denoise(z, batched(s.t, z)), s.a)
        ratio = _ratio(s.a, s.a_prev)
        h, x0_ahead = _extrapolated(ratio, k, x0, x0_before, h_before)
        scale = jnp.sqrt((1 - s.a_prev) / (1 - s.a))
        return (scale * z + jnp.sqrt(s.a_prev) * (1 - ratio) * x0_ahead, x0, h), x0

    return Loop((z_T, jnp.zeros_like(z_T), jnp.ones((), float)), step, _moving_steps(timetable))


@sampler(draws_noise=True, spacing="log_snr")
def dpm_solver_pp_2m_sde(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None,
    *,
    eta: float | jax.Array = 1.0,
    temperature: float | jax.Array = 1.0,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    noise_fn: NoiseFn | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, on diffusion SDEs), S evaluations.

    Solves dz = [f z - (1 + eta) / 2 g^2 score] dt + sqrt(eta) g dw, whose marginals are those of the probability flow
    for every eta: 1 is the paper's, 0 is `dpm_solver_pp_2m`. One step, with the same extrapolated x0:
        z' = sqrt((1-a') / (1-a)) e^(-eta h) z + sqrt(a') (1 - e^(-(1+eta) h)) x0 + sqrt((1-a') (1 - e^(-2 eta h))) n
    keys may be None when eta is the number 0.
    """
    random = not (isinstance(eta, int | float) and eta == 0)
    noise = noise_source(noise_fn, keys, z_T, 0) if random else None
    known = known_source(mask, z_known, known_noise_fn, keys, z_T)

    def step(carry, x):
        (z, x0_before, h_before), (s, k) = carry, x
        z = known(z, s)
        x0 = x0_of(z, denoise(z, batched(s.t, z)), s.a)
        ratio = _ratio(s.a, s.a_prev)
        h, x0_ahead = _extrapolated(ratio, k, x0, x0_before, h_before)
        scale = jnp.sqrt((1 - s.a_prev) / (1 - s.a)) * jnp.exp(-eta * h)
        z = scale * z + jnp.sqrt(s.a_prev) * (1 - ratio * jnp.exp(-eta * h)) * x0_ahead
        if noise is not None:
            z = z + jnp.sqrt((1 - s.a_prev) * -jnp.expm1(-2 * eta * h)) * temperature * noise(s.k)
        return (z, x0, h), x0

    return Loop((z_T, jnp.zeros_like(z_T), jnp.ones((), float)), step, _moving_steps(timetable))


@sampler(spacing="log_snr")
def unipc_2(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """UniPC-2 (Zhao et al. 2023, arXiv 2302.04867), S evaluations, order of accuracy 3: see `_unipc`."""
    return _unipc(2, denoise, z_T, timetable, known_source(mask, z_known, known_noise_fn, keys, z_T))


@sampler(spacing="log_snr")
def unipc_3(
    denoise: Denoise,
    z_T: jax.Array,
    timetable: Timetable,
    keys: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    z_known: jax.Array | None = None,
    known_noise_fn: NoiseFn | None = None,
) -> Loop:
    """UniPC-3 (Zhao et al. 2023, arXiv 2302.04867), S evaluations, order of accuracy 4: see `_unipc`."""
    return _unipc(3, denoise, z_T, timetable, known_source(mask, z_known, known_noise_fn, keys, z_T))


def _unipc(order: int, denoise: Denoise, z_T: jax.Array, timetable: Timetable, known: Known) -> Loop:
    """UniPC-p, multistep, of the clean latent, with B(h) = e^h - 1 (the paper's section 3).

    Step k evaluates the network at the predicted latent. With that x0 the corrector UniC-p takes the last step once
    more; from there the predictor UniP-p goes on. Both replace x0 in the integral by a polynomial: the predictor's goes
    through the last p values, the corrector's also through the new one. Where it is a line, the paper's weight 1/2
    stands in for its integral. The first steps have as many values as there are. A last step that ends at alpha_bar 1
    is of first order.
    """
    steps, places = _moving_steps(timetable)

    def step(carry, x):
        (z, base, x0s, levels), (s, k) = carry, x  # x0s [p,B,...] and alpha_bar [p] of the last steps, newest first
        z = known(z, s)
        x0 = x0_of(z, denoise(z, batched(s.t, z)), s.a)
        now, past = _lambda(s.a), _lambda(levels)
        h = now - past[0]
        nodes = [jnp.ones_like(h), *((past[i] - past[0]) / h for i in range(1, order))]
        weights = _weights(h, nodes, jnp.minimum(k, order))
        corrected = _integrated(base, levels[0], s.a, jnp.exp(-h), x0s[0], weights, [x0, *x0s[1:]])
        z = jnp.where(k == 0, z, known(corrected, s))
        ratio = _ratio(s.a, s.a_prev)
        h = -jnp.log(jnp.where(ratio == 0, 0.5, ratio))
        nodes = [(past[i] - now) / h for i in range(order - 1)]
        weights = _weights(h, nodes, jnp.where(ratio == 0, 0, jnp.minimum(k, order - 1)))
        predicted = _integrated(z, s.a, s.a_prev, ratio, x0, weights, x0s[: order - 1])
        x0s = jnp.concatenate([x0[None], x0s[:-1]])
        levels = jnp.concatenate([s.a[None], levels[:-1]])
        return (predicted, z, x0s, levels), x0

    before = steps.a[0] / 2 ** jnp.arange(1, order + 1, dtype=float)  # any different levels
    return Loop((z_T, z_T, jnp.zeros((order, *z_T.shape), z_T.dtype), before), step, (steps, places))


def _integrated(z, a, a_next, ratio, x0, weights, others):
    """z at level a_next: the exact solution with x0 + sum_i weights[i] (others[i] - x0) in place of its integral.
    ratio: e^(-h)."""
    ahead = (1 - ratio) * x0
    for i, other in enumerate(others):
        ahead = ahead + weights[i] * (other - x0)
    return jnp.sqrt((1 - a_next) / (1 - a)) * z + jnp.sqrt(a_next) * ahead


def _weights(h: jax.Array, nodes: list[jax.Array], number: jax.Array) -> jax.Array:
    """Weights [N] of x0 at lambda + nodes[i] h, of which the first `number` are used and the others have weight 0."""
    choices = [jnp.zeros(len(nodes), float)]
    for n in range(1, len(nodes) + 1):
        found = [-jnp.expm1(-h) / (2 * nodes[0])] if n == 1 else _exact_weights(h, nodes[:n])
        choices.append(jnp.stack([*found, *[jnp.zeros_like(h)] * (len(nodes) - n)]))
    return jnp.stack(choices)[number]


def _exact_weights(h: jax.Array, nodes: list[jax.Array]) -> list[jax.Array]:
    """Integrals of e^(tau-h) l_i(tau / h), 0 <= tau <= h, of the Lagrange polynomials l_i of 0 and the nodes."""
    moments, found = _moments(h, len(nodes)), []
    for i, node in enumerate(nodes):
        product, below = [jnp.ones_like(h)], node  # coefficients of prod_j (x - r_j), the constant first
        for other in (*nodes[:i], *nodes[i + 1 :]):
            shifted, kept = [jnp.zeros_like(h), *product], [*product, jnp.zeros_like(h)]
            product = [up - other * same for up, same in zip(shifted, kept)]
            below = below * (node - other)
        found.append(sum(c * m for c, m in zip(product, moments)) / below)
    return found


def _moments(h: jax.Array, number: int) -> list[jax.Array]:
    """M_j = integral of e^(tau-h) (tau / h)^j, 0 <= tau <= h, for j = 1 .. number; h above 0.

    M_j = 1 - j M_(j-1) / h cancels for small h; there the series h sum_n (-h)^n j! / (j+1+n)! is used.
    """
    found, recursive = [], -jnp.expm1(-h)
    for j in range(1, number + 1):
        recursive = 1 - j * recursive / h
        small = jnp.minimum(h, 1.0)
        series = sum((-small) ** n * (factorial(j) / factorial(j + 1 + n)) for n in range(14))
        found.append(jnp.where(h < 1, small * series, recursive))
    return found


def _ratio(a: jax.Array, a_prev: jax.Array) -> jax.Array:
    """e^(-h), h the step in lambda; 0 where a_prev is 1."""
    return jnp.sqrt((1 - a_prev) / a_prev * a / (1 - a))


def _lambda(a: jax.Array) -> jax.Array:
    return 0.5 * (jnp.log(a) - jnp.log1p(-a))
