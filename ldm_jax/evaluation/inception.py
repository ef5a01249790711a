"""Inception-v3 as FID uses it: TensorFlow's network of 2015-12-05, in PyTorch's names.

    params = inception.params(state)        # the flat state dict of pt_inception-2015-12-05
    taps = Inception().apply(params, x, ("2048", "spatial"))     # x [B,299,299,3] in 0..255, by tf1_bilinear

It differs from torchvision's: average pools leave the padding out, and the last block pools by maximum.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.errors import UsageError
from ldm_jax.evaluation.layers import HIGHEST, FixedNorm, Tree, conv, dotted, parameters

SIZE = 299
CLASSES = 1008
# Numbers of one image: spatial is sFID's, 7 channels of a map of 17 x 17.
TAPS = {
    "64": (64,),
    "192": (192,),
    "768": (768,),
    "spatial": (17, 17, 7),
    "2048": (2048,),
    "logits_unbiased": (CLASSES,),
    "logits": (CLASSES,),
}


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU."""

    width: int
    size: int | tuple[int, int] = 1
    stride: int = 1
    padding: int | tuple[int, int] = 0

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        x = conv(self.width, self.size, self.stride, self.padding, use_bias=False, name="conv")(x)
        return nn.relu(FixedNorm(name="bn")(x))


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """3 x 3 with stride 2, no padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """3 x 3 with stride 1; at the edges the mean is over what lies inside."""
    ones = [np.convolve(np.ones(n), np.ones(3), "same") for n in x.shape[1:3]]
    count = (ones[0][:, None] * ones[1]).astype(np.float32)[..., None]  # [H,W,1]: XLA would fold a pooled [B,H,W,C]
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total / count


def chain(x: Array, prefix: str, *steps: tuple) -> Array:
    """ConvNorms in a row, called prefix_1, prefix_2, ..., or prefix where there is one."""
    for number, step in enumerate(steps, 1):
        x = ConvNorm(*step, name=f"{prefix}_{number}" if len(steps) > 1 else prefix)(x)
    return x


class BlockA(nn.Module):
    """Mixed_5b to 5d, 35 x 35."""

    pool: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        branches = [
            chain(x, "branch1x1", (64,)),
            chain(x, "branch5x5", (48,), (64, 5, 1, 2)),
            chain(x, "branch3x3dbl", (64,), (96, 3, 1, 1), (96, 3, 1, 1)),
            chain(average_pool(x), "branch_pool", (self.pool,)),
        ]
        return jnp.concatenate(branches, -1)


class BlockB(nn.Module):
    """Mixed_6a, 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        branches = [
            chain(x, "branch3x3", (384, 3, 2)),
            chain(x, "branch3x3dbl", (64,), (96, 3, 1, 1), (96, 3, 2)),
            max_pool(x),
        ]
        return jnp.concatenate(branches, -1)


class BlockC(nn.Module):
    """Mixed_6b to 6e, 17 x 17. Gives the first branch too, after its ReLU."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B H W D"], Float[Array, "B H W d"]]:
        n, row, column = self.width, ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        branches = [
            chain(x, "branch1x1", (192,)),
            chain(x, "branch7x7", (n,), (n, *row), (192, *column)),
            chain(x, "branch7x7dbl", (n,), (n, *column), (n, *row), (n, *column), (192, *row)),
            chain(average_pool(x), "branch_pool", (192,)),
        ]
        return jnp.concatenate(branches, -1), branches[0]


class BlockD(nn.Module):
    """Mixed_7a, 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        branches = [
            chain(x, "branch3x3", (192,), (320, 3, 2)),
            chain(x, "branch7x7x3", (192,), (192, (1, 7), 1, (0, 3)), (192, (7, 1), 1, (3, 0)), (192, 3, 2)),
            max_pool(x),
        ]
        return jnp.concatenate(branches, -1)


class BlockE(nn.Module):
    """Mixed_7b, which pools by average, and 7c, by maximum; 8 x 8."""

    pool: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        def split(x: Array, prefix: str) -> list[Array]:
            across = ConvNorm(384, (1, 3), 1, (0, 1), name=f"{prefix}a")(x)
            return [across, ConvNorm(384, (3, 1), 1, (1, 0), name=f"{prefix}b")(x)]

        three = ConvNorm(384, name="branch3x3_1")(x)
        double = ConvNorm(448, name="branch3x3dbl_1")(x)
        double = ConvNorm(384, 3, 1, 1, name="branch3x3dbl_2")(double)
        pooled = average_pool(x) if self.pool == "average" else nn.max_pool(x, (3, 3), padding="SAME")
        branches = [
            ConvNorm(320, name="branch1x1")(x),
            *split(three, "branch3x3_2"),
            *split(double, "branch3x3dbl_3"),
            ConvNorm(192, name="branch_pool")(pooled),
        ]
        return jnp.concatenate(branches, -1)


class Inception(nn.Module):
    """The whole network, for inference only."""

    @nn.compact
    def __call__(self, x: Float[Array, "B 299 299 3"], taps: Sequence[str] = ("2048",)) -> dict[str, Array]:
        """x in 0..255, float32. {tap: [B, *TAPS[tap]]} in float32.

        "64", "192", "768": means over the map after the two max pools and after Mixed_6e; "2048": the last mean, which
        FID compares; "spatial": the first 7 channels of Mixed_6d.branch1x1; logits with and without the bias of fc.
        """
        if unknown := set(taps) - set(TAPS):
            raise UsageError(f"Inception has no taps {sorted(unknown)}; it has {', '.join(TAPS)}")
        found = {}
        x = (x - 128) / 128
        x = ConvNorm(32, 3, 2, name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, 3, name="Conv2d_2a_3x3")(x)
        x = max_pool(ConvNorm(64, 3, 1, 1, name="Conv2d_2b_3x3")(x))
        found["64"] = x.mean((1, 2))
        x = ConvNorm(80, name="Conv2d_3b_1x1")(x)
        x = max_pool(ConvNorm(192, 3, name="Conv2d_4a_3x3")(x))
        found["192"] = x.mean((1, 2))
        for letter, pool in zip("bcd", (32, 64, 64)):
            x = BlockA(pool, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192)):
            x, branch = BlockC(width, name=f"Mixed_6{letter}")(x)
            if letter == "d":
                found["spatial"] = branch[..., :7]
        found["768"] = x.mean((1, 2))
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE("average", name="Mixed_7b")(x)
        x = BlockE("max", name="Mixed_7c")(x)
        x = found["2048"] = x.mean((1, 2))
        fc = self.param("fc", _init_fc, x.shape[-1])
        found["logits_unbiased"] = jnp.dot(x, fc["kernel"], precision=HIGHEST)
        found["logits"] = found["logits_unbiased"] + fc["bias"]
        return {tap: found[tap] for tap in taps}


def _init_fc(key: jax.Array, width: int) -> Tree:
    return {"kernel": nn.initializers.lecun_normal()(key, (width, CLASSES)), "bias": jnp.zeros(CLASSES)}


def params(state: Mapping[str, np.ndarray]) -> Tree:
    """From the state dict of pt_inception-2015-12-05, pytorch-fid's and torch-fidelity's. UsageError for others."""
    return parameters(Inception(), (SIZE, SIZE), state, dotted)
