"""The feature networks by name: what each takes, what it gives, and what a distance of its features is called."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.errors import UsageError
from ldm_jax.evaluation import dinov2, efficientnet_lite, inception, vgg
from ldm_jax.evaluation.layers import Tree
from ldm_jax.evaluation.resize import RESIZES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns a picture into numbers.

    size: side of what it takes; resize: which of RESIZES brings pictures to it, unless another is asked for; tap: the
    output that is compared; taps: the shapes of all, one image's; params: from a flat state dict of PyTorch.
    normalise: [N,size,size,3] in 0..255 -> what the module takes.
    """

    name: str
    size: int
    resize: str
    tap: str
    taps: Mapping[str, tuple[int, ...]]
    module: nn.Module
    params: Callable[[Mapping[str, np.ndarray]], Tree]
    normalise: Callable[[Array], Array]

    @property
    def width(self) -> int:
        """How many numbers are compared."""
        return math.prod(self.taps[self.tap])

    def distance_name(self, tap: str | None = None) -> str:
        """Of a Frechet distance: "FID" for Inception's 2048 numbers alone, "sFID" for its spatial ones, else
        "FD-<network>", with the tap where it is not the usual one."""
        tap = tap or self.tap
        if self.name == "inception" and tap in ("2048", "spatial"):
            return "FID" if tap == "2048" else "sFID"
        return f"FD-{self.name}" + ("" if tap == self.tap else f"-{tap}")


def imagenet(x: Float[Array, "N H W 3"]) -> Float[Array, "N H W 3"]:
    """0..255 -> 0..1, less the mean of ImageNet, divided by its standard deviation."""
    return (x / 255 - jnp.array(IMAGENET_MEAN, jnp.float32)) / jnp.array(IMAGENET_STD, jnp.float32)


def _dinov2(name: str) -> FeatureNetwork:
    """FD-DINOv2's resize is Pillow's here, that of the paper; EDM2's is torch_bicubic_antialias, torch-fidelity's
    tf1_bilinear."""
    width, depth = dinov2.ARCHITECTURES[name]
    return FeatureNetwork(
        name, 224, "pil_bicubic_uint8", "class_token", {"class_token": (width,), "patch_tokens": (256, width)},
        dinov2.DINOv2(width, depth), partial(dinov2.params, name), imagenet,
    )  # fmt: skip


def _vgg(name: str, tap: str) -> FeatureNetwork:
    return FeatureNetwork(
        name, vgg.SIZE, "torch_bicubic_antialias", tap, {tap: vgg.TAPS[tap]},
        vgg.VGG16(), partial(vgg.params, tap=tap), imagenet,
    )  # fmt: skip


_ALL = (
    FeatureNetwork(
        "inception", inception.SIZE, "tf1_bilinear", "2048", inception.TAPS,
        inception.Inception(), inception.params, lambda x: x,
    ),
    *map(_dinov2, dinov2.ARCHITECTURES),
    _vgg("vgg16", "relu5_3"),
    _vgg("vgg16_fc2", "fc2"),
    FeatureNetwork(
        "efficientnet_lite0", efficientnet_lite.SIZE, "torch_bicubic_antialias", "pooled", efficientnet_lite.TAPS,
        efficientnet_lite.EfficientNetLite0(), efficientnet_lite.params, lambda x: (x - 127) / 128,
    ),
)  # fmt: skip
NETWORKS = {network.name: network for network in _ALL}


def find(name: str) -> FeatureNetwork:
    """The network of that name. "inception:768" is Inception whose 768 numbers of an earlier layer are compared; it is
    then called "inception-768". Raises UsageError for an unknown name or layer."""
    base, _, tap = name.partition(":")
    if base not in NETWORKS:
        raise UsageError(f"there is no feature network {base!r}; there are {', '.join(NETWORKS)}")
    network = NETWORKS[base]
    if tap in ("", network.tap):
        return network
    layers = [layer for layer, shape in network.taps.items() if len(shape) == 1]
    if tap not in layers:
        raise UsageError(f"{base} has no layer {tap!r} to compare; there are {', '.join(layers)}")
    return replace(network, name=f"{base}-{tap}", tap=tap)


def check_resize(name: str) -> None:
    """Raises UsageError for an unknown resize."""
    if name not in RESIZES:
        raise UsageError(f"there is no resize {name!r}; there are {', '.join(RESIZES)}")
