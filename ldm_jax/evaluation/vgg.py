"""VGG16 (Simonyan and Zisserman, 2014) as a feature network, with torchvision's ImageNet weights.

Two taps. "fc2": the second hidden layer after its ReLU, 4096 numbers, the layer that precision and recall were proposed
with. "relu5_3": the last convolution after its ReLU, averaged over space, 512 numbers; for this one the convolutions
alone are enough, which the file of LPIPS holds.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.errors import UsageError
from ldm_jax.evaluation.layers import Tree, conv, dense, parameters

SIZE = 224
TAPS = {"relu5_3": (512,), "fc2": (4096,)}
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width, convolutions; a max pool after each


class VGG16(nn.Module):
    """For inference. x: pixels less ImageNet's mean, divided by its standard deviation."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], taps: Sequence[str] = ("relu5_3",)) -> dict[str, Array]:
        """{tap: [B, *TAPS[tap]]}. fc2 takes 224 x 224 only. Raises UsageError for unknown taps."""
        if unknown := set(taps) - set(TAPS):
            raise UsageError(f"VGG16 has no taps {sorted(unknown)}; it has {', '.join(TAPS)}")
        found, layer = {}, 0
        for width, count in STAGES:
            for _ in range(count):
                x = nn.relu(conv(width, 3, 1, 1, name=f"features_{layer}")(x))
                layer += 2
            found["relu5_3"] = x.mean((1, 2))
            x = nn.max_pool(x, (2, 2), (2, 2))
            layer += 1
        if "fc2" in taps:
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # as PyTorch orders them
            for number in (0, 3):
                x = nn.relu(dense(4096, name=f"classifier_{number}")(x))
            found["fc2"] = x
        return {tap: found[tap] for tap in taps}


def params(state: Mapping[str, np.ndarray], tap: str) -> Tree:
    """For one tap, from torchvision's state dict or, for relu5_3, from the file of LPIPS. UsageError for others."""
    if "net.0.weight" in state:
        numbers = [i for i, layer in enumerate(_layers()) if layer == "conv"]
        state = {
            f"features.{number}.{kind}": state[f"net.{i}.{kind}"]
            for i, number in enumerate(numbers)
            for kind in ("weight", "bias")
        }
    kept = ("features.", "classifier.0.", "classifier.3.") if tap == "fc2" else ("features.",)
    state = {key: array for key, array in state.items() if key.startswith(kept)}
    return parameters(VGG16(), (SIZE, SIZE), state, taps=(tap,))


def _layers() -> list[str]:
    """What stands at each number of torchvision's `features`."""
    return [kind for _, count in STAGES for kind in ["conv", "relu"] * count + ["pool"]]
