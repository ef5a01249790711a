"""Attention of the UNet and of the first stages.

The UNet's unconditional AttentionBlock, its SpatialTransformer (self-attention, cross-attention to a context,
feed-forward; LDM paper, appendix E.2.1), and the first stages' single-head AttnBlock and LinearAttention.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from ldm_jax.arrays import Array
from ldm_jax.models.kernels import attend
from ldm_jax.models.layers import AE_EPS, UNET_EPS, Conv, Dense, GroupNorm32

LAYER_NORM_EPS = 1e-5  # torch's default; flax's is 1e-6


def split_heads(x: Float[Array, "B Q C"], heads: int) -> Float[Array, "B {heads} Q D"]:
    """[B,Q,heads*D] -> [B,heads,Q,D]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def join_heads(x: Float[Array, "B heads Q D"]) -> Float[Array, "B Q heads*D"]:
    """[B,heads,Q,D] -> [B,Q,heads*D]."""
    batch, heads, length, dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * dim)


class AttentionBlock(nn.Module):
    """The UNet's self-attention without a transformer: x + proj(attention(norm(x))), [B,H,W,C] -> same.

    `new_order` False: the 3C outputs of qkv are (head, q|k|v, D); True: (q|k|v, head, D).
    """

    num_heads: int
    new_order: bool = False
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        if channels % self.num_heads:
            raise ValueError(f"{channels} channels do not divide into {self.num_heads} heads")
        tokens = x.reshape(batch, height * width, channels)
        h = GroupNorm32(UNET_EPS, self.groups, dtype=self.dtype, name="norm")(tokens)
        qkv = Conv(3 * channels, (1,), dtype=self.dtype, name="qkv")(h)  # [B,Q,3C], Q = H*W
        if self.new_order:
            q, k, v = (split_heads(a, self.num_heads) for a in jnp.split(qkv, 3, axis=-1))
        else:
            q, k, v = jnp.split(split_heads(qkv, self.num_heads), 3, axis=-1)
        h = join_heads(attend(q, k, v))
        h = Conv(channels, (1,), zero_init=True, dtype=self.dtype, name="proj_out")(h)
        return x.astype(self.dtype) + h.reshape(x.shape)


class CrossAttention(nn.Module):
    """Queries from x, keys and values from the context (from x itself without one): [B,Q,C] -> [B,Q,C]."""

    num_heads: int
    head_dim: int
    out_name: str = "to_out_0"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q C"],
        context: Float[Array, "B L D"] | None = None,
        mask: Bool[Array, "B L"] | Bool[Array, "B Q L"] | None = None,
    ) -> Float[Array, "B Q C"]:
        """context [B,L,D]; mask [B,L] or [B,Q,L], True where the context may be attended to."""
        context = x if context is None else context
        inner = self.num_heads * self.head_dim

        def project(name: str, source: Array) -> Array:
            y = Dense(inner, use_bias=False, dtype=self.dtype, name=name)(source)
            return split_heads(y, self.num_heads)

        h = attend(project("to_q", x), project("to_k", context), project("to_v", context), mask)
        return Dense(x.shape[-1], dtype=self.dtype, name=self.out_name)(join_heads(h))


class FeedForward(nn.Module):
    """[B,Q,C] -> [B,Q,C] through 4C hidden units and the exact GELU; `gated`: value * gelu(gate)."""

    gated: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B Q C"]) -> Float[Array, "B Q C"]:
        inner = 4 * x.shape[-1]
        if self.gated:
            h = Dense(2 * inner, dtype=self.dtype, name="net_0_proj")(x)
            value, gate = jnp.split(h, 2, axis=-1)
            h = value * nn.gelu(gate, approximate=False)
        else:
            h = nn.gelu(Dense(inner, dtype=self.dtype, name="net_0_0")(x), approximate=False)
        return Dense(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class BasicTransformerBlock(nn.Module):
    """Pre-norm residual self-attention, cross-attention, GEGLU feed-forward: [B,Q,C] -> [B,Q,C]."""

    num_heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B Q C"], context: Float[Array, "B L D"] | None = None) -> Float[Array, "B Q C"]:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(LAYER_NORM_EPS, dtype=self.dtype, use_fast_variance=False, name=name)

        def attention(name: str) -> CrossAttention:
            return CrossAttention(self.num_heads, self.head_dim, dtype=self.dtype, name=name)

        x = x + attention("attn1")(norm("norm1")(x))
        x = x + attention("attn2")(norm("norm2")(x), context)
        return x + FeedForward(dtype=self.dtype, name="ff")(norm("norm3")(x))


class SpatialTransformer(nn.Module):
    """x + proj_out(transformer blocks(proj_in(norm(x)))) over the H*W positions: [B,H,W,C] -> same."""

    num_heads: int
    head_dim: int
    depth: int = 1
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B L D"] | None = None
    ) -> Float[Array, "B H W C"]:
        """context [B,L,D], or None: then both attentions are self-attention."""
        batch, height, width, channels = x.shape
        inner = self.num_heads * self.head_dim
        h = GroupNorm32(AE_EPS, self.groups, dtype=self.dtype, name="norm")(x)
        h = Conv(inner, (1, 1), dtype=self.dtype, name="proj_in")(h).reshape(batch, height * width, inner)
        for i in range(self.depth):
            block = BasicTransformerBlock(
                self.num_heads, self.head_dim, dtype=self.dtype, name=f"transformer_blocks_{i}"
            )
            h = block(h, context)
        h = h.reshape(batch, height, width, inner)
        h = Conv(channels, (1, 1), zero_init=True, dtype=self.dtype, name="proj_out")(h)
        return x.astype(self.dtype) + h


class AttnBlock(nn.Module):
    """The first stages' attention, one head as wide as the features: x + proj(...), [B,H,W,C] -> same."""

    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        h = GroupNorm32(AE_EPS, self.groups, dtype=self.dtype, name="norm")(x)

        def project(name: str) -> Array:
            y = Conv(channels, (1, 1), dtype=self.dtype, name=name)(h)
            return y.reshape(batch, 1, height * width, channels)

        h = attend(project("q"), project("k"), project("v")).reshape(x.shape)
        return x.astype(self.dtype) + Conv(channels, (1, 1), dtype=self.dtype, name="proj_out")(h)


class LinearAttention(nn.Module):
    """The first stages' linear attention, one head: v softmax(k)^T q over positions, [B,H,W,C] -> same.

    Only k is normalised (over positions), and there is neither a norm nor a residual, as in the original.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        qkv = Conv(3 * channels, (1, 1), use_bias=False, dtype=self.dtype, name="to_qkv")(x)
        q, k, v = jnp.split(qkv.reshape(batch, height * width, 3 * channels), 3, axis=-1)
        k = jax.nn.softmax(k.astype(jnp.float32), axis=1).astype(self.dtype)
        context = jnp.einsum("bnd,bne->bde", k, v)
        h = jnp.einsum("bnd,bde->bne", q, context).reshape(x.shape)
        return Conv(channels, (1, 1), dtype=self.dtype, name="to_out")(h)


class AttentionPool(nn.Module):
    """[B,H,W,C] -> [B,features]: the mean of all positions attends to itself and to them (the original's
    AttentionPool2d, from CLIP). Positions are learned: it takes maps of the size it was trained with."""

    features: int
    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B features"]:
        batch, height, width, channels = x.shape
        if channels % self.num_heads:
            raise ValueError(f"{channels} channels do not divide into {self.num_heads} heads")
        tokens = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)  # [B,1+H*W,C]
        places = self.param("positional_embedding", nn.initializers.normal(channels**-0.5), tokens.shape[1:])
        qkv = Conv(3 * channels, (1,), dtype=self.dtype, name="qkv_proj")(tokens + places.astype(tokens.dtype))
        q, k, v = (split_heads(a, self.num_heads) for a in jnp.split(qkv, 3, axis=-1))
        h = join_heads(attend(q[:, :, :1], k, v))  # [B,1,C]: what the positions would see is not used
        return Conv(self.features, (1,), dtype=self.dtype, name="c_proj")(h)[:, 0]
