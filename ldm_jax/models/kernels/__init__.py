"""The operations that the networks are made of, each in the form that is fastest on this backend.

    reference.py  the formulas in plain JAX: what is computed
    cpu.py        other forms for CPUs, in float32
    gpu.py        attention by cuDNN's fused kernel, and group normalisation, in half precision

The choice is made here, when a function is traced, by the backend, shapes and types; values differ by rounding only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from ldm_jax.arrays import Array
from ldm_jax.models.kernels import cpu, gpu, reference

_chosen: ContextVar[str | None] = ContextVar("chosen", default=None)


@contextmanager
def use(backend: str) -> Iterator[None]:
    """What is traced within has the forms for `backend` ("cpu", "gpu", ...) and not for JAX's default one.

    A function that was traced before, and is called again within, keeps its forms.
    """
    before = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(before)


def plain():
    """What is traced within has the formulas of reference.py, on every backend. A context manager, see `use`."""
    return use("reference")


def backend() -> str:
    """Whose forms are chosen."""
    return _chosen.get() or jax.default_backend()


def conv(
    x: Float[Array, "B *positions in"],
    kernel: Float[Array, "*size in out"],
    stride: int = 1,
    pads: tuple[int, int] = (1, 1),
    up: bool = False,
) -> Float[Array, "B *after out"]:
    """Convolution: [B,H,W,in], [k,k,in,out] -> [B,H',W',out]; `pads` (before, after) of both axes.

    With one position, [1,1,in,out] or [1,in,out], it is a product over the last axis: [...,in] -> [...,out].
    up: of the image doubled by nearest neighbour.
    """
    on_cpu, same_size = _on_cpu(x, kernel), stride == 1 and pads == (1, 1)
    if up and on_cpu and same_size and cpu.upsamples(x, kernel):
        return cpu.up_conv(x, kernel)
    if up:
        x = reference.nearest_up(x)
    if on_cpu and cpu.few_pixels(x, kernel, stride):
        return cpu.conv_by_product(x, kernel, stride, pads)
    if on_cpu and same_size and cpu.convolves(x, kernel):
        return cpu.conv(x, kernel)
    return reference.conv(x, kernel, stride, pads)


def depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"], stride: int = 1, precision: PrecisionLike = None
) -> Float[Array, "B h w C"]:
    """A convolution of each channel by itself, zeros around: [B,H,W,C] -> [B,h,w,C], h = H / stride rounded up.

    precision: of the products on accelerators.
    """
    if _on_cpu(x, kernel):
        return cpu.depthwise(x, kernel, stride)
    return reference.depthwise(x, kernel, stride, precision)


def group_norm(
    x: Float[Array, "B *positions C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    groups: int,
    eps: float,
    dtype: DTypeLike,
) -> Float[Array, "B *positions C"]:
    """Group normalisation of x [B,...,C] with float32 statistics of each sample's groups of channels -> same, `dtype`.

    scale, bias: [C] float32. eps is added to the variance.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[-1])  # [B,N,C]
    if backend() == "gpu" and flat.dtype == dtype and gpu.normalises(flat):
        return gpu.group_norm(flat, scale, bias, groups, eps).reshape(x.shape)
    flat = flat.astype(jnp.float32)
    form = cpu if dtype == jnp.float32 and _on_cpu(flat) and cpu.normalises(flat) else reference
    return form.group_norm(flat, scale, bias, groups, eps).reshape(x.shape).astype(dtype)


def attend(
    q: Float[Array, "B heads Q D"],
    k: Float[Array, "B heads L D"],
    v: Float[Array, "B heads L D"],
    mask: Bool[Array, "B L"] | Bool[Array, "B Q L"] | None = None,
) -> Float[Array, "B heads Q D"]:
    """softmax(q k^T / sqrt(D)) v with the softmax in float32.

    q [B,heads,Q,D], k and v [B,heads,L,D] -> [B,heads,Q,D] of v's type. mask [B,L] or [B,Q,L]: True where a query may
    attend to a key; a query without any attends to all.
    Heads stand before positions: that layout needs no transposed copies inside the products.
    """
    if mask is None and _on_cpu(q, k) and cpu.attends(q, k):
        return cpu.attend(q, k, v)
    if mask is None and backend() == "gpu" and gpu.attends(q, k):
        return gpu.attend(q, k, v)
    return reference.attend(q, k, v, mask)


def argmin(x: Float[Array, "..."], axis: int = -1) -> Int[Array, "..."]:
    """First index of the smallest value along the axis, int32. x without NaN."""
    return (cpu if _on_cpu(x) else reference).argmin(x, axis)


def _on_cpu(*arrays: Array) -> bool:
    """Whether the forms of cpu.py are meant for these arrays."""
    return backend() == "cpu" and all(a.dtype == jnp.float32 for a in arrays)
