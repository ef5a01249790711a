"""The resizes that come before feature networks, each exactly as its reference computes it.

All take uint8 [N,H,W,3] and give float32 [N,h,w,3] in 0..255. Two run in JAX, inside a compiled program; two are
Pillow's and run on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image

from ldm_jax.arrays import Array

HIGHEST = jax.lax.Precision.HIGHEST
AnyArray = Array | np.ndarray
Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Resize:
    """A resize by name. on_host: it takes and gives numpy arrays; else it can be compiled."""

    name: str
    function: Callable
    on_host: bool

    def __call__(self, images: UInt8[AnyArray, "N H W 3"], size: Size) -> Float[AnyArray, "N h w 3"]:
        return self.function(images, size)


def tf1_bilinear(images: Num[AnyArray, "N H W C"], size: Size) -> Float[Array, "N h w C"]:
    """Bilinear as in TensorFlow 1, which the FID network was given.

    Output i looks at position i * (in / out), in float32: no half pixel, no antialiasing, and the edge is repeated.
    """
    images = jnp.asarray(images, jnp.float32)
    for axis in (2, 1):
        low, high, weight = _tf1_positions(images.shape[axis], size[axis - 1])
        weight = weight.reshape([-1 if i == axis else 1 for i in range(4)])
        first = images.take(low, axis)
        images = first + (images.take(high, axis) - first) * weight
    return images


def _tf1_positions(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output: the lower neighbour, the upper one, and the upper one's weight, float32."""
    position = np.arange(after, dtype=np.float32) * (np.float32(before) / np.float32(after))
    low = np.minimum(np.floor(position).astype(np.int32), before - 1)
    return low, np.minimum(low + 1, before - 1), position - low.astype(np.float32)


def antialiased_bicubic(images: Num[AnyArray, "N H W C"], size: Size) -> Float[Array, "N h w C"]:
    """Bicubic (a = -0.5) whose kernel widens when it shrinks, in float32: neither rounded nor clipped.

    This is torch's `interpolate(mode="bicubic", antialias=True)`. Overshoot leaves 0..255.
    """
    images = jnp.asarray(images, jnp.float32)
    rows = antialiased_weights(images.shape[1], size[0])
    columns = antialiased_weights(images.shape[2], size[1])
    images = jnp.einsum("nhwc,vw->nhvc", images, columns, precision=HIGHEST)
    return jnp.einsum("nhvc,uh->nuvc", images, rows, precision=HIGHEST)


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel of distances x, which is 0 from 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def antialiased_weights(before: int, after: int) -> Float[np.ndarray, "after before"]:
    """How much each pixel of the input gives to each of the output; rows sum to 1."""
    scale = before / after
    widening = max(scale, 1.0)
    centre = (np.arange(after)[:, None] + 0.5) * scale
    pixel = np.arange(before)[None, :]
    weights = cubic((pixel + 0.5 - centre) / widening, -0.5)
    first = np.floor(np.maximum(centre - 2 * widening + 0.5, 0))
    last = np.floor(np.minimum(centre + 2 * widening + 0.5, before))
    weights = np.where((pixel >= first) & (pixel < last), weights, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def pillow_bicubic(images: UInt8[np.ndarray, "N H W C"], size: Size) -> Float[np.ndarray, "N h w C"]:
    """Pillow's bicubic on uint8 pixels: antialiased, rounded to whole numbers."""
    resized = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in np.asarray(images)]
    return np.stack([np.asarray(image) for image in resized]).astype(np.float32)


def clean_fid(images: UInt8[np.ndarray, "N H W C"], size: Size) -> Float[np.ndarray, "N h w C"]:
    """clean-FID's: Pillow's bicubic on each channel as float32, clipped to 0..255, not rounded."""
    planes = np.moveaxis(np.asarray(images).astype(np.float32), -1, 1)
    resized = [
        [np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC)) for plane in image]
        for image in planes
    ]
    return np.moveaxis(np.clip(np.asarray(resized, np.float32), 0, 255), 1, -1)


RESIZES = {
    "tf1_bilinear": Resize("tf1_bilinear", tf1_bilinear, on_host=False),
    "torch_bicubic_antialias": Resize("torch_bicubic_antialias", antialiased_bicubic, on_host=False),
    "pil_bicubic_uint8": Resize("pil_bicubic_uint8", pillow_bicubic, on_host=True),
    "clean_fid": Resize("clean_fid", clean_fid, on_host=True),
}
