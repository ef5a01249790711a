"""Forms for NVIDIA GPUs, in half precision only. Not needed to understand the networks: reference.py says what is
computed.

attend: by cuDNN's fused kernel, which never writes the [B,heads,Q,L] weights to memory. Which head widths the kernel
takes depends on the GPU, cuDNN and JAX, so each is tried once, forward and backward, and compared with the plain form;
the choice is logged. Several hosts make one choice, so that all of them compile the same program.

group_norm: reads its input once for the statistics, and keeps it in half precision for the gradient.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.models.kernels.reference import group_means, group_norm_gradient

_log = logging.getLogger(__name__)
Implementation = Literal["cudnn", "xla"]
HALF = (jnp.bfloat16, jnp.float16)
LONG = 64  # keys from which on the weights are large enough to matter
LARGEST_ERROR = 0.05  # of the gradients, relative; bfloat16 has 8 bits


def attends(q: Float[Array, "B heads Q D"], k: Float[Array, "B heads L D"]) -> bool:
    """Whether `attend` takes q [B,heads,Q,D] and k [B,heads,L,D]. Decided when a function is traced.

    That is for half precision, enough keys, lengths that JAX has the kernel's gradient for, and heads that it takes.
    """
    even = q.shape[2] % 2 == k.shape[2] % 2 == 0
    meant = q.dtype in HALF and k.shape[2] >= LONG and even
    return meant and works(q.shape[-1], q.dtype.name)


def attend(
    q: Float[Array, "B heads Q D"],
    k: Float[Array, "B heads L D"],
    v: Float[Array, "B heads L D"],
    implementation: Implementation = "cudnn",
) -> Float[Array, "B heads Q D"]:
    """softmax(q k^T / sqrt(D)) v: q [B,heads,Q,D], k and v [B,heads,L,D] -> [B,heads,Q,D]."""
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # JAX wants positions before heads
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation).transpose(0, 2, 1, 3)


@lru_cache(maxsize=64)
def works(head_dim: int, dtype: str) -> bool:
    """Whether the kernel takes heads of this width and type. Found out at the first call, then kept.

    Of several hosts the first one tries the kernel and all take its answer. So every host has to make this call, and
    does where all of them trace the same functions.
    """
    # In a thread of its own: JAX's traces belong to a thread, and the first call may come in the middle of one.
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(_decide, head_dim, dtype).result()


def _decide(head_dim: int, dtype: str) -> bool:
    """`works`, outside any trace."""
    if jax.process_count() == 1:
        return _tried(head_dim, dtype)
    answer = jax.process_index() == 0 and _tried(head_dim, dtype)
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def _tried(head_dim: int, dtype: str) -> bool:
    """Runs the kernel on random arrays of this host and compares it with the plain form."""
    try:
        found, expected = _gradients("cudnn", head_dim, dtype), _gradients("xla", head_dim, dtype)
    except Exception as error:  # whatever cuDNN, XLA or JAX raise for what they do not support
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _log.warning("attention, heads of %d, %s: not fused (%s)", head_dim, dtype, reason)
        return False
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    good = difference <= LARGEST_ERROR
    choice = "cuDNN's fused kernel" if good else "not fused"
    text = "attention, heads of %d, %s: %s (relative error of gradients %.2g)"
    _log.warning(text, head_dim, dtype, choice, difference)
    return good


def _gradients(implementation: Implementation, head_dim: int, dtype: str) -> np.ndarray:
    """Of a function of the attention of 128 positions to q, k and v, in one row."""
    rng = np.random.default_rng(0)
    arrays = [jnp.dtype(dtype).type(rng.standard_normal((1, 2, 128, head_dim))) for _ in range(3)]

    def loss(q, k, v):
        return jnp.sum(jnp.sin(attend(q, k, v, implementation).astype(jnp.float32)))

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
    return np.concatenate([np.asarray(g, np.float32).ravel() for g in compiled(*arrays)])


def normalises(x: Array) -> bool:
    """Whether `group_norm` is meant for x: half precision."""
    return x.dtype in HALF


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "B N C"], scale: Float[Array, " C"], bias: Float[Array, " C"], groups: int, eps: float
) -> Float[Array, "B N C"]:
    """Group normalisation of half-precision x [B,N,C] with float32 statistics, result of x's type.

    Statistics in one pass over x: sums of its distance to the first position and of their squares, so that a large mean
    costs no digits. (The first position is at most sqrt(N) standard deviations from its channel's mean, which costs a
    part of N * 1e-7 of the variance.)

    The gradient keeps x as it is, in half precision, and needs one pass for its sums.
    """
    return _group_norm(x, scale, bias, groups, eps)[0]


def _group_norm(x: Array, scale: Array, bias: Array, groups: int, eps: float):
    first = x[:, :1].astype(jnp.float32)  # [B,1,C]
    apart = x.astype(jnp.float32) - first
    offset = jnp.mean(apart, axis=1, keepdims=True)
    square = jnp.mean(apart * apart, axis=1, keepdims=True)
    spread = jnp.maximum(square - offset * offset, 0)  # of each channel, about its own mean
    means = first + offset
    mean = group_means(means, groups)
    variance = group_means(spread + (means - mean) ** 2, groups)
    rate = lax.rsqrt(variance + eps)  # 1 / standard deviation
    slope = rate * scale
    y = x.astype(jnp.float32) * slope + (bias - mean * slope)
    return y.astype(x.dtype), (x, scale, mean, rate)


def _group_norm_backward(groups: int, eps: float, saved, grad: Array):
    x, scale, mean, rate = saved
    wide, grad = x.astype(jnp.float32), grad.astype(jnp.float32)
    sums = partial(jnp.sum, axis=1, keepdims=True)
    dx, dscale, dbias = group_norm_gradient(wide, scale, mean, rate, grad, groups, sums)
    return dx.astype(x.dtype), dscale, dbias


group_norm.defvjp(_group_norm, _group_norm_backward)
