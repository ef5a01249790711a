"""What feature networks are made of: convolutions, a norm of fixed statistics, and parameters from a state dict."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.convert import names
from ldm_jax.models import kernels

Tree = Any
HIGHEST = jax.lax.Precision.HIGHEST  # accelerators multiply float32 in fewer bits otherwise


class FixedNorm(nn.Module):
    """BatchNorm with the statistics of training: never those of the batch. [..., C] -> the same shape."""

    eps: float = 1e-3

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        shape = x.shape[-1:]
        mean, bias = (self.param(name, nn.initializers.zeros, shape) for name in ("mean", "bias"))
        var, scale = (self.param(name, nn.initializers.ones, shape) for name in ("var", "scale"))
        factor = scale / jnp.sqrt(var + self.eps)
        return (x - mean) * factor + bias


def conv(width: int, size: int | tuple[int, int], stride: int = 1, padding: Any = 0, **options) -> nn.Conv:
    """A convolution in full precision. padding: zeros at each edge, (vertical, horizontal) or one number; or "SAME"."""
    size = (size, size) if isinstance(size, int) else size
    if not isinstance(padding, str):
        padding = (padding, padding) if isinstance(padding, int) else padding
        padding = [(n, n) for n in padding]
    return nn.Conv(width, size, stride, padding=padding, precision=HIGHEST, **options)


def depthwise(size: int, channels: int, stride: int, name: str) -> nn.Conv:
    """A convolution of each channel by itself, without bias, "SAME": [B,H,W,C] -> [B,H/stride,W/stride,C]."""
    return conv(
        channels, size, stride, "SAME", feature_group_count=channels, use_bias=False, name=name,
        conv_general_dilated=lambda x, kernel, strides, *_, precision, **__: kernels.depthwise(
            x, kernel, strides[0], precision
        ),
    )  # fmt: skip


def dense(width: int, name: str) -> nn.Dense:
    """A linear layer in full precision."""
    return nn.Dense(width, precision=HIGHEST, name=name)


def parameters(
    module: nn.Module,
    image: tuple[int, int],
    state: Mapping[str, np.ndarray],
    key_of: Callable[[str], str] = names.torch_key,
    **options,
) -> Tree:
    """{"params"} of a network that takes [B,H,W,3], from a flat state dict of PyTorch, as float32.

    key_of: the key of a parameter's path "a/b/kernel". options: of the call. Raises UsageError with what is missing and
    what is left over.
    """
    x = jax.ShapeDtypeStruct((1, *image, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: module.init(key, x, **options), jax.random.key(0), x)["params"]
    return {"params": names.from_torch(state, shapes, key_of)}


def dotted(path: str) -> str:
    """The key of a parameter whose modules are called as in PyTorch."""
    *modules, leaf = path.split("/")
    return ".".join([*modules, names.LEAVES.get(leaf, leaf)])
