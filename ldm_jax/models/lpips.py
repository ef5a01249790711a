"""LPIPS, the learned perceptual distance (Zhang et al., 2018), version 0.1 with linear heads.

Images are shifted and scaled to the backbone's input; at five depths (squeeze: seven) features are normalised to unit
length along the channels, their squared difference is weighted per channel, averaged over space, and summed.

Parameters, also the keys of the safetensors file ("net.0.weight" [out,in,kh,kw], "net.0.bias",
"lin0.weight" [C]): net_I = the I-th convolution of the backbone, counted from 0; lin0 .. lin4 or lin6 = the heads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from ldm_jax.arrays import Array
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
# SqueezeNet 1.1. A fire module is a 1x1 convolution and, side by side after it, a 1x1 and a 3x3 one: two numbers, the
# width of the first and of each of the others, and whether its output is compared.
Fire = tuple[int, int, bool]
SQUEEZE: tuple[Layer | Fire | str, ...] = (
    (64, 3, 2, 0, True), "pool",
    (16, 64, False), (16, 64, True), "pool",
    (32, 128, False), (32, 128, True), "pool",
    (48, 192, True), (48, 192, True), (64, 256, True), (64, 256, True),
)  # fmt: skip
# net -> (layers, window of the max-pooling with stride 2, smallest image side)
NETS = {"vgg16": (VGG16, 2, 16), "alex": (ALEX, 3, 31), "squeeze": (SQUEEZE, 3, 17)}
RESULTS = ("distance", "layers", "map")


class LPIPS(nn.Module):
    """net: "vgg16", "alex" or "squeeze". dtype: compute type of the backbone; distances are float32."""

    net: str = "vgg16"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, a: Float[Array, "..."], b: Float[Array, "..."], result: str = "distance"
    ) -> Float[Array, "B ..."]:
        """Of images [B,H,W,3] or [B,H,W,1] in [-1,1], float32: the distance [B]; with result="layers" what each depth
        adds to it [B,L]; with "map" the distance at each pixel [B,H,W], the depths' maps enlarged bilinearly.

        Raises ValueError for an unknown net or result, other channels, or images smaller than the backbone allows.
        """
        _check(self.net, a, b)
        if result not in RESULTS:
            raise ValueError(f"result={result!r} is not one of {', '.join(RESULTS)}")
        layers, window, _ = NETS[self.net]
        net = [
            nn.Conv(width, (size, size), stride, padding=padding, dtype=self.dtype, name=f"net_{i}")
            for i, (width, size, stride, padding) in enumerate(_convolutions(layers))
        ]

        def features(x: Array) -> list[Array]:
            if x.shape[-1] == 1:
                x = jnp.repeat(x, 3, axis=-1)
            x = (x.astype(self.dtype) - jnp.array(SHIFT, self.dtype)) / jnp.array(SCALE, self.dtype)
            convolutions, taps = iter(net), []
            for layer in layers:
                if isinstance(layer, str):  # "pool"
                    x = nn.max_pool(x, (window, window), (2, 2), _whole(x.shape) if self.net == "squeeze" else "VALID")
                    continue
                x = nn.relu(next(convolutions)(x))
                if len(layer) == 3:  # a fire module
                    x = jnp.concatenate([nn.relu(next(convolutions)(x)), nn.relu(next(convolutions)(x))], -1)
                if layer[-1]:
                    taps.append(_unit(x))
            return taps

        # Not in one batch: the backward pass then skips the image that needs no gradient.
        maps = []
        for i, (fa, fb) in enumerate(zip(features(a), features(b))):
            c = fa.shape[-1]
            weight = self.param(f"lin{i}", nn.initializers.constant(1 / c), (c,))
            maps.append((fa - fb) ** 2 @ weight)
        if result == "map":
            size = a.shape[:3]
            return jnp.sum(jnp.stack([jax.image.resize(m, size, "bilinear", antialias=False) for m in maps]), 0)
        parts = [m.mean((1, 2)) for m in maps]
        if result == "layers":
            return jnp.stack(parts, -1)
        total = jnp.zeros(len(a), jnp.float32)
        for part in parts:
            total += part
        return total


def _convolutions(layers: tuple[Layer | Fire | str, ...]) -> list[tuple[int, int, int, int]]:
    """(width, kernel size, stride, padding) of all convolutions in the order of their parameters."""
    found: list[tuple[int, int, int, int]] = []
    for layer in layers:
        if isinstance(layer, str):
            continue
        if len(layer) == 3:
            inner, outer, _ = layer
            found += [(inner, 1, 1, 0), (outer, 1, 1, 0), (outer, 3, 1, 1)]
        else:
            found.append(layer[:4])
    return found


def _whole(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Padding at the bottom and right with which a window of 3 and stride 2 reaches the last row and column."""
    return [(0, (side - 3) % 2) for side in shape[1:3]]


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
    return lpips_params(tensors, net, str(path))


def lpips_params(tensors: Mapping[str, np.ndarray], net: str, origin: str = "the state") -> Tree:
    """The same from the file's tensors. origin: where they come from, for messages."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(LPIPS(net).init, jax.random.key(0), image, image)["params"]
    wanted = {k for name in shapes for k in _keys(name)}
    if wanted != tensors.keys():
        raise ValueError(
            f"{origin} does not hold {net}: missing {sorted(wanted - tensors.keys())}, "
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
            raise ValueError(f"{origin}: {name} has shape {found}, {net} needs {needed}")
    return jax.tree.map(jnp.asarray, params)


def from_torchvision(backbone: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's tensors from torchvision's backbone ("features.N.weight", in SqueezeNet "features.N.squeeze.weight")
    and the heads "linI.model.1.weight" [1,C,1,1] of the LPIPS repository."""

    def place(key: str) -> tuple[int, int]:
        _, number, *part, _ = key.split(".")
        return int(number), ("squeeze", "expand1x1", "expand3x3").index(part[0]) if part else 0

    weights = [key for key in backbone if key.startswith("features.") and key.endswith(".weight")]
    tensors = {key.replace(".model.1", ""): np.asarray(heads[key]).ravel() for key in heads}
    for i, key in enumerate(sorted(weights, key=place)):
        tensors[f"net.{i}.weight"] = backbone[key]
        tensors[f"net.{i}.bias"] = backbone[key.removesuffix("weight") + "bias"]
    return tensors


def _keys(name: str) -> tuple[str, ...]:
    """Keys in the file of the parameter `name`."""
    if name.startswith("lin"):
        return (f"{name}.weight",)
    base = name.replace("_", ".")
    return f"{base}.weight", f"{base}.bias"
