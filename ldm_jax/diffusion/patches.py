"""Large images in overlapping patches: cut, map a network over the patches, blend (LDM paper, section 4.3.2).

The weight of a pixel is its distance to the patch's border (`weights`). The blended image is
    y = sum_p w_p y_p / sum_p w_p
over the patches p that cover a pixel. Patches are numbered row by row. The network may change the resolution:
`scale` is 1 for a denoiser, f for a decoder, 1/f for an encoder.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, PyTree, Shaped

from ldm_jax.arrays import Array

CLIP = (0.01, 0.5)  # the original's bounds of the weights


def corners(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> Int[np.ndarray, "rows columns 2"]:
    """Upper left corners [rows,columns,2] int of the patches (kh,kw) that cover an image of size (H,W).

    They are `stride` apart, but the last of a row or column lies at the image's border, also where the stride
    does not lead there (the original leaves that rest uncovered).
    Raises ValueError for a patch larger than the image or a stride that leaves gaps.
    """
    for n, k, s in zip(size, kernel, stride):
        if not 0 < s <= k <= n:
            raise ValueError(
                f"image {size}, patches {kernel}, stride {stride}: needs 0 < stride <= patch <= image on both axes"
            )
    axes = [np.append(np.arange(0, n - k, s), n - k) for n, k, s in zip(size, kernel, stride)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def boxes(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]) -> Float[np.ndarray, "P 4"]:
    """The parts of an image that `patchwise` gives to its network: [P,4], (x0, y0, x1, y1) in 0..1."""
    kernel, stride = _fitted(size, kernel, stride)
    first = corners(size, kernel, stride).reshape(-1, 2)
    return np.concatenate([first[:, ::-1], (first + kernel)[:, ::-1]], axis=1) / np.array([*size[::-1]] * 2)


def _fitted(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(kernel, stride) cut down to the image and the patch."""
    height, width = min(kernel[0], size[0]), min(kernel[1], size[1])
    return (height, width), (min(stride[0], height), min(stride[1], width))


def weights(
    kernel: tuple[int, int],
    grid: tuple[int, int],
    clip: tuple[float, float] = CLIP,
    tie_clip: tuple[float, float] | None = None,
) -> Float[np.ndarray, "P kh kw"]:
    """Weights [P,kh,kw] float32 of the pixels of the P = rows * columns patches of a grid.

    A pixel's is its distance to the patch's border, as a share of the patch, clipped to `clip`: 0 at the
    border, 0.5 in the middle. `tie_clip` multiplies it by the same measure of the patch's place in the grid,
    clipped to that (the original's tie breaker, off in its notebook).
    """
    inner = np.clip(_border_distance(kernel), *clip)
    outer = np.ones(grid) if tie_clip is None else np.clip(_border_distance(grid), *tie_clip)
    return (outer.reshape(-1, 1, 1) * inner).astype(np.float32)


def _border_distance(size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """[h,w]: the smaller of the two axes' distances to the nearer end, each as a share of its axis."""
    axes = [np.arange(n) / max(n - 1, 1) for n in size]
    y, x = (np.minimum(axis, 1 - axis) for axis in axes)
    return np.minimum(y[:, None], x[None, :])


def unfold(
    x: Shaped[Array, "B H W C"], kernel: tuple[int, int], stride: tuple[int, int]
) -> Shaped[Array, "P B kh kw C"]:
    """[B,H,W,C] -> patches [P,B,kh,kw,C]."""
    _, height, width, _ = x.shape
    where = corners((height, width), kernel, stride).reshape(-1, 2)
    return jnp.stack([x[:, i : i + kernel[0], j : j + kernel[1]] for i, j in where])


def overlap_add(
    patches: Float[np.ndarray | Array, "P B kh kw C"], where: Int[np.ndarray, "rows columns 2"], size: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """Sum of patches [P,B,kh,kw,C] at their upper left corners `where` [rows,columns,2]: [B,H,W,C] float32."""
    _, batch, height, width, channels = patches.shape
    total = jnp.zeros((batch, *size, channels), jnp.float32)
    for patch, (i, j) in zip(patches, where.reshape(-1, 2)):
        total = total.at[:, i : i + height, j : j + width].add(patch)
    return total


def fold(
    patches: Float[Array, "P B kh kw C"],
    size: tuple[int, int],
    stride: tuple[int, int],
    w: Float[np.ndarray, "P kh kw"],
) -> Float[Array, "B H W C"]:
    """Patches [P,B,kh,kw,C] and their weights [P,kh,kw] -> the blended image [B,H,W,C] of `size`."""
    _, _, height, width, _ = patches.shape
    where = corners(size, (height, width), stride)
    w = w[:, None, :, :, None]
    return overlap_add(w * patches, where, size) / overlap_add(w, where, size)


def patchwise(
    fn: Callable[..., Array],
    x: PyTree[Shaped[Array, "B _ _ _"]],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    scale: float | Fraction = 1,
    clip: tuple[float, float] = CLIP,
    tie_clip: tuple[float, float] | None = None,
    each: Shaped[Array, " P ..."] | None = None,
) -> Float[Array, "B _ _ _"]:
    """fn over overlapping patches of x, blended: [B,H,W,C] -> [B,scale*H,scale*W,C'] float32.

    fn: [B,kh,kw,C] -> [B,scale*kh,scale*kw,C']. One patch at a time, so memory is the result and one patch, also
    that of a gradient, which evaluates every patch again.
    x may be a tree of images of the same H and W (latent and spatial condition): fn gets the tree of patches.
    kernel, stride: in pixels of x; a kernel larger than the image is cut down to it. Where one patch covers the
    image, this is fn(x) itself.
    each: [P,...], a further input for every patch, in the order of `corners`: the second argument of fn.
    Raises ValueError when a patch's size or place times `scale` is not a whole number, or `each` has not P rows.
    """
    leaves = jax.tree.leaves(x)
    size = leaves[0].shape[1:3]
    if any(leaf.shape[1:3] != size for leaf in leaves):
        raise ValueError(f"images of different sizes: {[leaf.shape for leaf in leaves]}")
    kernel, stride = _fitted(size, kernel, stride)
    where = corners(size, kernel, stride)
    if each is not None and len(each) != len(where.reshape(-1, 2)):
        raise ValueError(f"{len(where.reshape(-1, 2))} patches, but `each` has {len(each)} rows")
    extra = () if each is None else (each,)
    scale = Fraction(scale).limit_denominator(1024)
    out_size, out_kernel = (tuple(_scaled(n, scale).tolist()) for n in (size, kernel))
    out_where = _scaled(where, scale)
    if kernel == size:
        whole = fn(x, *(each[0] for each in extra)).astype(jnp.float32)
        _check_size(whole, kernel, out_kernel, scale)
        return whole
    w = weights(out_kernel, where.shape[:2], clip, tie_clip)

    def cut(corner: Array):
        def one(image: Array) -> Array:
            return lax.dynamic_slice(image, (0, *corner, 0), (image.shape[0], *kernel, image.shape[3]))

        return jax.tree.map(one, x)

    first = jax.eval_shape(lambda: fn(cut(jnp.zeros(2, jnp.int32)), *(each[0] for each in extra)))
    _check_size(first, kernel, out_kernel, scale)

    @partial(jax.checkpoint, prevent_cse=False)  # inside a scan, nothing is merged anyway
    def weighted(corner: Array, weight: Array, extra: tuple[Array, ...]) -> Array:
        return fn(cut(corner), *extra).astype(jnp.float32) * weight[None, :, :, None]

    def add(total: Array, entry) -> tuple[Array, None]:
        corner, out_corner, weight, extra = entry
        start = (0, *out_corner, 0)
        patch = weighted(corner, weight, extra)
        before = lax.dynamic_slice(total, start, patch.shape)
        return lax.dynamic_update_slice(total, before + patch, start), None

    entries = *(jnp.asarray(a) for a in (where.reshape(-1, 2), out_where.reshape(-1, 2), w)), extra
    start = jnp.zeros((first.shape[0], *out_size, first.shape[3]), jnp.float32)
    total, _ = lax.scan(add, start, entries)
    return total / _covered(w, out_where, out_size)


def _check_size(
    out: Array | jax.ShapeDtypeStruct, kernel: tuple[int, int], wanted: tuple[int, int], scale: Fraction
) -> None:
    if out.shape[1:3] != wanted:
        raise ValueError(f"patches of {kernel} came out as {out.shape[1:3]}, not times scale {scale}")


def _covered(w: np.ndarray, where: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sum of the weights [P,kh,kw] at each pixel: [H,W,1]. In numpy, so that it is one constant in a program."""
    total = np.zeros((*size, 1), np.float32)
    for weight, (i, j) in zip(w, where.reshape(-1, 2)):
        total[i : i + w.shape[1], j : j + w.shape[2], 0] += weight
    return total


def _scaled(numbers, scale: Fraction) -> np.ndarray:
    """Whole numbers times scale, an int array of the same shape. Raises ValueError where they are not whole."""
    times = np.asarray(numbers) * scale.numerator
    if np.any(times % scale.denominator):
        raise ValueError(f"sizes and places {np.unique(numbers).tolist()} times {scale} are not whole numbers")
    return times // scale.denominator
