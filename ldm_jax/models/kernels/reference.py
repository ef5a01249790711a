"""The formulas in plain JAX: what the networks compute. The forms of cpu.py and gpu.py give the same, to rounding."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from ldm_jax.arrays import Array


def conv(
    x: Float[Array, "B *positions in"],
    kernel: Float[Array, "*size in out"],
    stride: int = 1,
    pads: tuple[int, int] = (1, 1),
) -> Float[Array, "B *after out"]:
    """Convolution: [B,H,W,in], [k,k,in,out] -> [B,H',W',out]; `pads` (before, after) of both axes.

    With one position, [1,1,in,out] or [1,in,out], it is a product over the last axis: [...,in] -> [...,out].
    """
    if math.prod(kernel.shape[:-2]) == 1 and stride == 1:
        return x @ kernel.reshape(kernel.shape[-2:])
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), (pads, pads), dimension_numbers=layout)


def depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"], stride: int = 1, precision: lax.PrecisionLike = None
) -> Float[Array, "B h w C"]:
    """A convolution of each channel by itself, zeros around: [B,H,W,C] -> [B,h,w,C], h = H / stride rounded up."""
    layout, channels = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=channels, precision=precision
    )


def nearest_up(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """[B,H,W,C] -> [B,2H,2W,C] by repetition."""
    batch, height, width, channels = x.shape
    shape = (batch, height, 2, width, 2, channels)
    return jnp.broadcast_to(x[:, :, None, :, None, :], shape).reshape(batch, 2 * height, 2 * width, channels)


def group_norm(
    x: Float[Array, "B N C"], scale: Float[Array, " C"], bias: Float[Array, " C"], groups: int, eps: float
) -> Float[Array, "B N C"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias, mean and variance of a sample's group: [B,N,C] -> same.

    The variance is taken about the mean (two passes): E[x^2] - E[x]^2 loses all digits when the mean is
    large. Sums run over positions per channel first and are then combined to groups, which XLA vectorises
    far better on a CPU than a reduction over [B,H,W,G,C/G].
    """
    centred = x - group_means(jnp.mean(x, axis=1, keepdims=True), groups)
    variance = group_means(jnp.mean(centred * centred, axis=1, keepdims=True), groups)
    return centred * (lax.rsqrt(variance + eps) * scale) + bias


def group_means(per_channel: Float[Array, "B 1 C"], groups: int) -> Float[Array, "B 1 C"]:
    """[B,1,C] -> [B,1,C], every channel holding its group's mean."""
    batch, one, channels = per_channel.shape
    means = jnp.mean(per_channel.reshape(batch, one, groups, channels // groups), axis=-1)
    return jnp.repeat(means, channels // groups, axis=-1)


def group_norm_gradient(
    x: Array, scale: Array, mean: Array, rate: Array, grad: Array, groups: int, sums: Callable[[Array], Array]
) -> tuple[Array, Array, Array]:
    """Gradients of `group_norm` to x, scale and bias, from x [B,N,C], mean and 1 / standard deviation [B,1,C].

    sums: [B,N,C] -> [B,1,C], over positions, in the form that is fast.
    """
    normal = (x - mean) * rate
    to_scale, to_bias = sums(grad * normal), sums(grad)
    to_mean, to_rate = (group_means(s * scale, groups) / x.shape[1] for s in (to_bias, to_scale))
    dx = (grad * scale - to_mean - normal * to_rate) * rate
    return dx, to_scale.sum((0, 1)), to_bias.sum((0, 1))


def attend(
    q: Float[Array, "B heads Q D"],
    k: Float[Array, "B heads L D"],
    v: Float[Array, "B heads L D"],
    mask: Bool[Array, "B L"] | Bool[Array, "B Q L"] | None = None,
) -> Float[Array, "B heads Q D"]:
    """softmax(q k^T / sqrt(D)) v: q [B,heads,Q,D], k and v [B,heads,L,D], mask [B,L] or [B,Q,L]."""
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bhtd,bhld->bhtl", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        pairs = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
        logits = jnp.where(pairs, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhtl,bhld->bhtd", weights, v)


def argmin(x: Float[Array, "..."], axis: int = -1) -> Int[Array, "..."]:
    """First index of the smallest value along the axis, int32."""
    return jnp.argmin(x, axis=axis).astype(jnp.int32)
