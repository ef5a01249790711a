"""LPIPS, the learned perceptual distance (Zhang et al., 2018), version 0.1 with linear heads.

Images are shifted and scaled to the backbone's input; at five depths features are normalised to unit length
along the channels, their squared difference is weighted per channel, averaged over space, and summed.

Parameters, also the keys of the safetensors file ("net.0.weight" [out,in,kh,kw], "net.0.bias",
"lin0.weight" [C]): net_I = the I-th convolution of the backbone, counted from 0; lin0 .. lin4 = the heads.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.files import unreadable

Tree = Any

# The ImageNet normalisation for inputs in [-1,1] instead of [0,1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
# Each convolution: width, kernel size, stride, padding, and whether its output (after ReLU) is compared.
Layer = tuple[int, int, int, int, bool]
VGG16: tuple[Layer | str, ...] = (
    (64, 3, 1, 1, False), (64, 3, 1, 1, True), "pool",
    (128, 3, 1, 1, False), (128, 3, 1, 1, True), "pool",
    (256, 3, 1, 1, False), (256, 3, 1, 1, False), (256, 3, 1, 1, True), "pool",
    (512, 3, 1, 1, False), (512, 3, 1, 1, False), (512, 3, 1, 1, True), "pool",
    (512, 3, 1, 1, False), (512, 3, 1, 1, False), (512, 3, 1, 1, True),
)  # fmt: skip
ALEX: tuple[Layer | str, ...] = (
    (64, 11, 4, 2, True), "pool",
    (192, 5, 1, 2, True), "pool",
    (384, 3, 1, 1, True), (256, 3, 1, 1, True), (256, 3, 1, 1, True),
)  # fmt: skip
# net -> (layers, window of the max-pooling with stride 2, smallest image side)
NETS = {"vgg16": (VGG16, 2, 16), "alex": (ALEX, 3, 31)}


class LPIPS(nn.Module):
    """net: "vgg16" or "alex". dtype: compute type of the backbone; distances are float32."""

    net: str = "vgg16"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, " B"]:
        """Distance [B], float32, of images [B,H,W,3] or [B,H,W,1] in [-1,1].

        Raises ValueError for an unknown net, other channels, or images smaller than the backbone allows.
        """
        _check(self.net, a, b)
        layers, window, _ = NETS[self.net]
        net = [
            nn.Conv(width, (size, size), stride, padding=padding, dtype=self.dtype, name=f"net_{i}")
            for i, (width, size, stride, padding, _) in enumerate(x for x in layers if not isinstance(x, str))
        ]

        def features(x: Array) -> list[Array]:
            if x.shape[-1] == 1:
                x = jnp.repeat(x, 3, axis=-1)
            x = (x.astype(self.dtype) - jnp.array(SHIFT, self.dtype)) / jnp.array(SCALE, self.dtype)
            convolutions, taps = iter(net), []
            for layer in layers:
                if isinstance(layer, str):  # "pool"
                    x = nn.max_pool(x, (window, window), (2, 2))
                    continue
                x = nn.relu(next(convolutions)(x))
                if layer[-1]:
                    taps.append(_unit(x))
            return taps

        # Not in one batch: the backward pass then skips the image that needs no gradient.
        total = jnp.zeros(len(a), jnp.float32)
        for i, (fa, fb) in enumerate(zip(features(a), features(b))):
            c = fa.shape[-1]
            weight = self.param(f"lin{i}", nn.initializers.constant(1 / c), (c,))
            total += ((fa - fb) ** 2 @ weight).mean((1, 2))
        return total


def _unit(x: Array) -> Array:
    """x / (|x| + 1e-10) along the last axis, float32; zero features stay zero and get a finite gradient."""
    x = x.astype(jnp.float32)
    square = (x**2).sum(-1, keepdims=True)
    # sqrt has an infinite slope at 0, which would turn into NaN: take the root of something else there.
    return x / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + 1e-10)


def _check(net: str, a: Array, b: Array) -> None:
    if net not in NETS:
        raise ValueError(f"net={net!r} is not one of {', '.join(NETS)}")
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] not in (1, 3):
        raise ValueError(f"LPIPS compares two [B,H,W,3] or [B,H,W,1]; got {a.shape} and {b.shape}")
    smallest = NETS[net][2]
    if min(a.shape[1:3]) < smallest:
        raise ValueError(f"{net} needs at least {smallest}x{smallest} pixels, not {a.shape[1]}x{a.shape[2]}")


def load_lpips(path: str | Path, net: str = "vgg16") -> Tree:
    """Parameters of LPIPS(net) from the safetensors file that scripts/make_lpips_weights.py makes, float32.

    Use as `LPIPS(net).apply({"params": params}, a, b)`. Raises FileNotFoundError with the command that makes
    the file, UsageError when it cannot be read, ValueError when it is of another net.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Make it once with\n"
            f"    python scripts/make_lpips_weights.py --net={net} --out={path.parent}"
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise unreadable(path, "a safetensors file", error) from error
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(LPIPS(net).init, jax.random.key(0), image, image)["params"]
    wanted = {k for name in shapes for k in _keys(name)}
    if wanted != tensors.keys():
        raise ValueError(
            f"{path} does not hold {net}: missing {sorted(wanted - tensors.keys())}, "
            f"unexpected {sorted(tensors.keys() - wanted)}"
        )
    params: Tree = {}
    for name, shape in shapes.items():
        leaves = [np.asarray(tensors[key], np.float32) for key in _keys(name)]
        if name.startswith("lin"):
            params[name] = leaves[0]
        else:
            params[name] = {"kernel": leaves[0].transpose(2, 3, 1, 0), "bias": leaves[1]}
        found, needed = jax.tree.map(np.shape, params[name]), jax.tree.map(np.shape, shape)
        if found != needed:
            raise ValueError(f"{path}: {name} has shape {found}, {net} needs {needed}")
    return jax.tree.map(jnp.asarray, params)


def _keys(name: str) -> tuple[str, ...]:
    """Keys in the file of the parameter `name`."""
    if name.startswith("lin"):
        return (f"{name}.weight",)
    base = name.replace("_", ".")
    return f"{base}.weight", f"{base}.bias"
