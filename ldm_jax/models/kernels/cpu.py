"""Forms for CPUs, where XLA's program for the formulas of reference.py is slow. Not needed to understand the networks:
reference.py says what is computed, here it is computed otherwise, to rounding (tests/models/test_cpu.py compares the
two). In float32 only.

The gradients of attend, group_norm and conv are written by hand (custom_vjp): they can be differentiated again in
reverse mode, but not in forward mode (jvp).

Gains on one AVX-512 core, jaxlib 0.10.2, milliseconds of forward and gradient (PyTorch 2.13 beside it), and seconds
of a training step of configs/celeba_ldm4.py at batch 1 as they were added, 8.1 before:

    attend      1024 positions, 14 heads of 32      136 -> 57  (89)      7.5; batch 4: 557 -> 210 (354)
    group_norm  64x64x224, with SiLU               15.6 -> 4.6 (1.9)     6.9
    conv        64x64x224, gradient to the kernel  40.6 -> 26  (21)      6.4

On two cores, later:

    up_conv     448 channels, 32x32 to 64x64          80 -> 44 (130)   forward alone 35 -> 18 (32)
                256 channels, 128x128 to 256x256     493 -> 224 (686)  forward alone 201 -> 96 (190)
    argmin      4096 vectors of 3, 8192 codes        119 -> 53 (44), with their distances
    conv_by_product  16 of 2x2, 1024 channels      2500 -> 29 (56)    forward alone 1170 -> 7 (9)
                     8x8, 896                        43 -> 24 (24)
                     16x16 to 8x8, 672               13 -> 6 (10)
    depthwise   EfficientNet-Lite0 as a whole: 4.7 -> 42 pictures a second, forward alone

Tried and left out: nine products for the convolution's gradients at batch 4 (no gain) and with 64 channels at batch
16 (half as fast); one product for more than 64 pixels (as fast at 16x16, slower above); sums over positions as ones @ x
(5 % slower than halves at batch 1, a third slower than the plain norm at batch 4); one gradient for norm and SiLU
together (none); gradients of biases as ones @ x (5 % of 0.4 ms); attention of 256 positions (3 ms of 10 at batch 1,
but 1 to 4 % of a quickstart's step lost at 16) and of 64 (none); whole heads instead of blocks (the same at batch 1,
half as fast at batch 4). Winograd convolutions: not needed, direct ones are as fast as PyTorch's.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from ldm_jax.arrays import Array
from ldm_jax.models.kernels import reference
from ldm_jax.models.kernels.reference import group_means

QUERIES, KEYS = 256, 64  # a block's logits of one head, 256 x 1024 or 64 x 1024 floats, stay in a core's cache
LONG = 1024  # positions from which on attention goes block by block
WIDE, FEW = 64, 64  # channels, pixels of a batch: of a convolution


def attends(q: Float[Array, "B heads Q D"], k: Float[Array, "B heads L D"]) -> bool:
    """Whether `attend` takes these and is faster than the plain form: many positions, a multiple of a block."""
    lengths = q.shape[2], k.shape[2]
    return min(lengths) >= LONG and all(n % QUERIES == 0 for n in lengths)


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _over_heads(f, *arrays: Array):
    """f on each head's slices, one head after the other: [B,heads,...] -> [B,heads,...]."""
    heads_first = tuple(jnp.swapaxes(a, 0, 1) for a in arrays)
    return tuple(jnp.swapaxes(a, 0, 1) for a in lax.map(lambda slices: f(*slices), heads_first))


def _blocks(x: Array, size: int) -> Array:
    """[B,L,D] -> [L/size,B,size,D]."""
    batch, length, dim = x.shape
    return x.reshape(batch, length // size, size, dim).swapaxes(0, 1)


def _join(x: Array) -> Array:
    """[n,B,size,D] -> [B,n*size,D]."""
    blocks, batch, size, dim = x.shape
    return x.swapaxes(0, 1).reshape(batch, blocks * size, dim)


@jax.custom_vjp
def attend(
    q: Float[Array, "B heads Q D"],
    k: Float[Array, "B heads L D"],
    v: Float[Array, "B heads L D"],
) -> Float[Array, "B heads Q D"]:
    """softmax(q k^T / sqrt(D)) v: q [B,heads,Q,D], k and v [B,heads,L,D] -> [B,heads,Q,D].

    Block by block, and the backward pass makes the weights again from the logarithms of their sums, as in
    FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2); with the logits transposed there, [L,Q], no product
    contracts the first axis of a large matrix, which XLA does at a tenth of the speed.
    """
    return _attend(q, k, v)[0]


def _attend(q: Array, k: Array, v: Array):
    def head(q: Array, k: Array, v: Array):
        def block(q: Array):
            logits = q @ _swap(k)  # [B,q,L]
            largest = jnp.max(logits, axis=-1, keepdims=True)
            weights = jnp.exp(logits - largest)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            return weights @ v / total, largest + jnp.log(total)

        out, log_total = lax.map(block, _blocks(q * q.shape[-1] ** -0.5, QUERIES))
        return _join(out), _join(log_total)

    out, log_total = _over_heads(head, q, k, v)
    return out, (q, k, v, out, log_total)


def _attend_backward(saved, grad: Array):
    q, k, v, out, log_total = saved
    scale = q.shape[-1] ** -0.5
    pull = jnp.sum(out * grad, axis=-1, keepdims=True)  # [B,heads,Q,1]: the softmax's part of the gradient

    def head(q, k, v, grad, log_total, pull):  # [B,Q,D], [B,Q,1]
        q_t, grad_t, log_total_t, pull_t = (_swap(a) for a in (q * scale, grad, log_total, pull))

        def block(dq_t, keys):
            k, v = keys  # [B,l,D]
            weights = jnp.exp(k @ q_t - log_total_t)  # [B,l,Q]
            dlogits = weights * (v @ grad_t - pull_t)
            return dq_t + _swap(k) @ dlogits, (dlogits @ q * scale, weights @ grad)

        dq_t, (dk, dv) = lax.scan(block, jnp.zeros_like(q_t), (_blocks(k, KEYS), _blocks(v, KEYS)))
        return _swap(dq_t) * scale, _join(dk), _join(dv)

    return _over_heads(head, q, k, v, grad, log_total, pull)


attend.defvjp(_attend, _attend_backward)


def normalises(x: Float[Array, "B N C"]) -> bool:
    """Whether `group_norm` takes x [B,N,C] and is faster: a single sample of an even number of positions."""
    return x.shape[0] == 1 and x.shape[1] % 2 == 0


def _sums(x: Array) -> Array:
    """[1,N,C] -> [1,1,C], sums over positions, as if the halves were two samples."""
    return jnp.sum(jnp.sum(x.reshape(2, -1, x.shape[-1]), axis=1), axis=0)[None, None]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "1 N C"], scale: Float[Array, " C"], bias: Float[Array, " C"], groups: int, eps: float
) -> Float[Array, "1 N C"]:
    """Group normalisation of [1,N,C], as reference.group_norm: only the gradient's sums are made in another way."""
    return _group_norm(x, scale, bias, groups, eps)[0]


def _group_norm(x: Array, scale: Array, bias: Array, groups: int, eps: float):
    mean = group_means(jnp.mean(x, axis=1, keepdims=True), groups)
    centred = x - mean
    variance = group_means(jnp.mean(centred * centred, axis=1, keepdims=True), groups)
    rate = lax.rsqrt(variance + eps)  # 1 / standard deviation
    return centred * (rate * scale) + bias, (x, scale, mean, rate)


def _group_norm_backward(groups: int, eps: float, saved, grad: Array):
    x, scale, mean, rate = saved
    return reference.group_norm_gradient(x, scale, mean, rate, grad, groups, _sums)


group_norm.defvjp(_group_norm, _group_norm_backward)


def few_pixels(x: Float[Array, "B *positions in"], kernel: Float[Array, "*size in out"], stride: int) -> bool:
    """Whether `conv_by_product` takes x [B,H,W,in] and kernel [3,3,in,out] and is faster.

    That is for wide kernels and few pixels, and by far for results that are 1 or 2 pixels high or wide.
    """
    batch, height, width = (-(-n // s) for n, s in zip(x.shape, (1, stride, stride)))
    few = batch * height * width <= FEW and min(kernel.shape[2:]) >= 4 * WIDE
    return kernel.shape[:2] == (3, 3) and (few or min(height, width) <= 2)


def conv_by_product(
    x: Float[Array, "B H W in"], kernel: Float[Array, "k k in out"], stride: int, pads: tuple[int, int]
) -> Float[Array, "B _ _ out"]:
    """Convolution, as one product: the pixels under the kernel, side by side, times the kernel as one matrix.

    [B,H,W,in], [k,k,in,out], pads (before, after) of both axes -> [B,H',W',out].
    """
    below = jnp.concatenate(_below(x, kernel.shape[0], pads, stride), -1)
    return below @ kernel.reshape(-1, kernel.shape[-1])


def _below(x: Array, size: int, pads: tuple[int, int], stride: int = 1) -> list[Array]:
    """[B,H,W,C] -> size*size times [B,H',W',C]: the pixels under each position of a kernel, for all of its places."""
    x = jnp.pad(x, ((0, 0), pads, pads, (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    return [x[:, i::stride, j::stride][:, :height, :width] for i in range(size) for j in range(size)]


def depthwise(x: Float[Array, "B H W C"], kernel: Float[Array, "k k 1 C"], stride: int = 1) -> Float[Array, "B h w C"]:
    """As in reference.py: a sum of shifted pictures, which XLA makes one loop of."""
    size = kernel.shape[0]
    pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    below = _below(jnp.pad(x, ((0, 0), *pads, (0, 0))), size, (0, 0), stride)
    return sum(part * weights for part, weights in zip(below, kernel.reshape(size * size, -1)))


def convolves(x: Float[Array, "B *positions in"], kernel: Float[Array, "*size in out"]) -> bool:
    """Whether `conv` takes x [B,H,W,in] and kernel [3,3,in,out] and is faster: a single sample, wide on both sides."""
    return x.shape[0] == 1 and kernel.shape[:2] == (3, 3) and min(kernel.shape[2:]) >= WIDE


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Float[Array, "B H W in"], kernel: Float[Array, "k k in out"], pad: int = 1) -> Float[Array, "B _ _ out"]:
    """Convolution, stride 1: [B,H,W,in], [k,k,in,out] -> [B,H+2*pad-k+1,W+2*pad-k+1,out].

    Only its gradients are made in another way, that to the kernel by one product for each of its positions.
    """
    return reference.conv(x, kernel, 1, (pad, pad))


def _conv_backward(pad: int, saved, grad: Array):
    x, kernel = saved
    size, _, channels, features = kernel.shape
    below = _below(x, size, (pad, pad))
    dkernel = [pixels.reshape(-1, channels).T @ grad.reshape(-1, features) for pixels in below]
    swapped, outer = kernel.swapaxes(2, 3), size - 1 - pad
    if kernel.size < grad.size:  # one of them is turned round, the smaller, as XLA is slow at it
        dx = conv(grad, jnp.flip(swapped, (0, 1)), outer)
    else:
        dx = jnp.flip(conv(jnp.flip(grad, (1, 2)), swapped, outer), (1, 2))
    return dx, jnp.stack(dkernel).reshape(kernel.shape)


conv.defvjp(lambda x, kernel, pad: (conv(x, kernel, pad), (x, kernel)), _conv_backward)


def upsamples(x: Float[Array, "B H W in"], kernel: Float[Array, "k k in out"]) -> bool:
    """Whether `up_conv` takes x [B,H,W,in] and kernel [3,3,in,out] and is faster: enough pixels for its kernel."""
    return kernel.shape[:2] == (3, 3) and x.shape[0] * x.shape[1] * x.shape[2] > FEW


def up_conv(x: Float[Array, "B H W in"], kernel: Float[Array, "3 3 in out"]) -> Float[Array, "B 2*H 2*W out"]:
    """Nearest neighbour times 2, then a 3x3 convolution padded by 1: [B,H,W,in], [3,3,in,out] -> [B,2H,2W,out].

    Of the nine pixels that make one of the result at most four differ. So each of a result's 2x2 kinds of pixel is a
    2x2 convolution of x with sums of the kernel's rows and columns: 16 products for every pixel of x instead of 36.
    """
    batch, height, width, _ = x.shape
    features = kernel.shape[-1]
    kinds = jnp.concatenate([half for rows in _halves(kernel, 0) for half in _halves(rows, 1)], axis=-1)
    windows = conv(x, kinds)  # [B,H+1,W+1,4*out]
    windows = windows.reshape(batch, height + 1, width + 1, 2, 2, features)
    rows = [jnp.stack([windows[:, i : i + height, j : j + width, i, j] for j in (0, 1)], 3) for i in (0, 1)]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, features)


def _halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """The kernel's three slices along an axis, added up to the two that even, that odd pixels of the result see."""
    before, middle, after = jnp.split(kernel, 3, axis)
    even, odd = (before, middle + after), (before + middle, after)
    return jnp.concatenate(even, axis), jnp.concatenate(odd, axis)


def argmin(x: Float[Array, "..."], axis: int = -1) -> Int[Array, "..."]:
    """First index of the smallest value, int32, as jnp.argmin without NaN, whose reduction XLA does not vectorise."""
    x = lax.optimization_barrier(x)  # computed once, so that one of its values does equal the smallest
    smallest = jnp.min(x, axis=axis, keepdims=True)
    places = lax.broadcasted_iota(jnp.int32, x.shape, axis % x.ndim)
    return jnp.min(jnp.where(x == smallest, places, x.shape[axis]), axis=axis)
