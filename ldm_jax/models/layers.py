"""Layers shared by the UNet and the first stages: linear maps, convolutions, norms, residual blocks.

All images are [B,H,W,C]. Parameters are float32 whatever the compute type `dtype`. Initial values follow
PyTorch's defaults, uniform in +-1/sqrt(fan_in) for kernels and biases alike, with zeros where the original
zeroes a layer, so that training from scratch starts from the same distribution.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Real

from ldm_jax.arrays import Array
from ldm_jax.errors import ConfigError
from ldm_jax.models import kernels
from ldm_jax.models.kernels.reference import nearest_up

UNET_EPS = 1e-5  # the UNet's norms
AE_EPS = 1e-6  # the first stages' norms, and the norm that opens a spatial transformer


def _uniform(fan_in: int):
    """PyTorch's default for convolutions and linear layers: kaiming_uniform(a=sqrt(5)) is this bound."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """Linear map of the last axis: [...,in] -> [...,features]. Kernel [in,features]."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*rest in"]) -> Float[Array, "*rest out"]:
        init = _uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + self.param("bias", init, (self.features,)).astype(self.dtype)
        return y


class Conv(nn.Module):
    """Convolution, NHWC with HWIO kernels: [B,H,W,in] -> [B,H',W',features].

    `padding` is (low, high), the same on both axes; None pads by kernel//2 on every side, as torch's
    padding=1 does for 3x3. (XLA's "SAME" differs from that when stride is 2.)
    kernel_size=(1,) is torch's conv1d of width 1: a map of the last axis of [B,T,in], kernel [1,in,features].
    With `up` the image is doubled by nearest neighbour first.
    """

    features: int
    kernel_size: tuple[int, ...] = (3, 3)
    stride: int = 1
    padding: tuple[int, int] | None = None
    use_bias: bool = True
    zero_init: bool = False
    up: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *positions in"]) -> Float[Array, "B *after out"]:
        fan_in = math.prod(self.kernel_size) * x.shape[-1]
        init = nn.initializers.zeros_init() if self.zero_init else _uniform(fan_in)
        kernel = self.param("kernel", init, (*self.kernel_size, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        pads = self.padding or (self.kernel_size[0] // 2,) * 2
        y = kernels.conv(x, kernel, self.stride, pads, self.up)
        if self.use_bias:
            y = y + self.param("bias", init, (self.features,)).astype(self.dtype)
        return y


class GroupNorm32(nn.Module):
    """Group normalisation of [B,...,C] with groups of channels, 32 as in the original, and float32 statistics.

    Raises ConfigError for channels that do not divide into the groups.
    """

    eps: float
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *positions C"]) -> Float[Array, "B *positions C"]:
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups:
            raise ConfigError(
                f"GroupNorm of {channels} channels in {self.groups} groups: choose channel widths that are multiples "
                "of the groups, or another number of groups (norm_groups)"
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        return kernels.group_norm(x, scale, bias, self.groups, self.eps, self.dtype)


def timestep_embedding(t: Real[Array, " B"], dim: int, max_period: float = 10000.0) -> Float[Array, "B {dim}"]:
    """Cosines, then sines of t * max_period^(-i/half): t [B] integer or float -> [B,dim] float32.

    An odd `dim` ends with a column of zeros, as in the original.
    """
    half = dim // 2
    frequencies = np.exp(-math.log(max_period) * np.arange(half, dtype=np.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies.astype(np.float32)
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def average_down(x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
    """[B,H,W,C] -> [B,H//2,W//2,C]: means of 2x2 blocks; an odd last row or column is dropped."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def only_token(context: Float[Array, "B L D"], kind: str) -> Float[Array, "B D"]:
    """The one token of a context, float32, for a network with the option context=`kind`. ValueError for several."""
    if context.shape[1] != 1:
        raise ValueError(
            f"context of {context.shape[1]} tokens: context={kind!r} takes one, context='cross_attention' any number"
        )
    return context[:, 0].astype(jnp.float32)


def space_to_depth(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B _ _ _"]:
    """The pixels of each patch side by side as channels: [B,H,W,C] -> [B,H/p,W/p,p*p*C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // patch, width // patch, -1)


def depth_to_space(x: Float[Array, "B h w _"], patch: int) -> Float[Array, "B _ _ _"]:
    """The reverse of `space_to_depth`: [B,h,w,p*p*C] -> [B,h*p,w*p,C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, channels // patch**2)


class Downsample(nn.Module):
    """The UNet's: [B,H,W,C] -> [B,ceil(H/2),ceil(W/2),C], 3x3 stride 2 padded by 1; or a 2x2 mean."""

    use_conv: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
        if not self.use_conv:
            return average_down(x)
        return Conv(x.shape[-1], stride=2, dtype=self.dtype, name="op")(x)


class Upsample(nn.Module):
    """Nearest neighbour times 2, then a 3x3 convolution if wanted: [B,H,W,C] -> [B,2H,2W,C]."""

    use_conv: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
        if not self.use_conv:
            return nearest_up(x)
        return Conv(x.shape[-1], up=True, dtype=self.dtype, name="conv")(x)


class ResBlock(nn.Module):
    """The UNet's residual block: norm, SiLU, 3x3; + time embedding; norm, SiLU, dropout, 3x3 from zero.

    [B,H,W,C], emb [B,D] -> [B,H',W',features]. `up` / `down` resample by nearest / mean after the first
    SiLU and on the skip path. With use_scale_shift_norm the embedding acts as norm(h)*(1+scale)+shift.
    """

    features: int
    use_scale_shift_norm: bool = False
    up: bool = False
    down: bool = False
    dropout: float = 0.0
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B D"], train: bool = False
    ) -> Float[Array, "B _ _ features"]:
        resample = nearest_up if self.up else average_down if self.down else lambda a: a
        h = nn.silu(GroupNorm32(UNET_EPS, self.groups, dtype=self.dtype, name="in_layers_0")(x))
        h = Conv(self.features, dtype=self.dtype, name="in_layers_2")(resample(h))
        width = self.features * (2 if self.use_scale_shift_norm else 1)
        emb = Dense(width, dtype=self.dtype, name="emb_layers_1")(nn.silu(emb))[:, None, None, :]
        norm = GroupNorm32(UNET_EPS, self.groups, dtype=self.dtype, name="out_layers_0")
        if self.use_scale_shift_norm:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=not train)
        h = Conv(self.features, zero_init=True, dtype=self.dtype, name="out_layers_3")(h)
        x = resample(x)
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="skip_connection")(x)
        return x.astype(self.dtype) + h


class AEResnetBlock(nn.Module):
    """The first stages' residual block, twice (norm, swish, 3x3): [B,H,W,C] -> [B,H,W,features]."""

    features: int
    dropout: float = 0.0
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B H W features"]:
        h = nn.silu(GroupNorm32(AE_EPS, self.groups, dtype=self.dtype, name="norm1")(x))
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = nn.silu(GroupNorm32(AE_EPS, self.groups, dtype=self.dtype, name="norm2")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="nin_shortcut")(x)
        return x.astype(self.dtype) + h


class AEDownsample(nn.Module):
    """The first stages': [B,H,W,C] -> [B,H//2,W//2,C], 3x3 stride 2, padded right and bottom only."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H//2 W//2 C"]:
        return Conv(x.shape[-1], stride=2, padding=(0, 1), dtype=self.dtype, name="conv")(x)
