"""The other denoiser: a transformer over patches of latents (DiT, Peebles and Xie 2023, arXiv 2212.09748).

    tokens = patches of z_t as vectors + fixed positions
    c      = MLP(256 cosines and sines of t) + a class's vector
    block  = adaLN-Zero: shift, scale and gate of attention and MLP are linear maps of c that begin at zero (3.2)
    output = adaLN, a linear map of each token to its patch

Contexts of several tokens go through cross-attention (a further sub-layer of a block), channels that a condition joins
to z are further input channels, as with the UNet. Module names follow the released code's tree: x_embedder,
t_embedder, blocks_<n>, final_layer.
"""

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Real

from ldm_jax.arrays import Array
from ldm_jax.models.attention import join_heads, split_heads
from ldm_jax.models.kernels import attend
from ldm_jax.models.layers import depth_to_space, only_token, space_to_depth, timestep_embedding

CONTEXTS = ("adaln", "cross_attention")
FREQUENCIES = 256  # of the timestep embedding: cosines and sines together
EPS = 1e-6  # of the norms

_Linear = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
_Zero = partial(nn.Dense, kernel_init=nn.initializers.zeros_init())
_Small = partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))


def positions(height: int, width: int, dim: int) -> Float[np.ndarray, "N dim"]:
    """Sines and cosines of each token's place, [height*width,dim] float32, row by row.

    Four quarters: sines, cosines of its column, sines, cosines of its row, each at dim/4 frequencies from 1 to 1/10000.
    """
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim // 4))
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = [place[:, None] * frequencies for place in (columns, rows)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


class PatchEmbed(nn.Module):
    """Each patch as one vector times one matrix: [B,h,w,c] -> [B,N,width], N = h/p * w/p. Kernel [p,p,c,width]."""

    patch_size: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B N width"]:
        p, batch, channels = self.patch_size, z.shape[0], z.shape[-1]
        init = nn.initializers.xavier_uniform(in_axis=(0, 1, 2), out_axis=3)
        kernel = self.param("kernel", init, (p, p, channels, self.width))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
        patches = space_to_depth(z, p).reshape(batch, -1, p * p * channels).astype(self.dtype)
        return patches @ kernel.reshape(-1, self.width).astype(self.dtype) + bias.astype(self.dtype)


class TimestepEmbedder(nn.Module):
    """t [B] -> [B,width] float32."""

    width: int

    @nn.compact
    def __call__(self, t: Real[Array, " B"]) -> Float[Array, "B width"]:
        h = nn.silu(_Small(self.width, name="mlp_0")(timestep_embedding(t, FREQUENCIES)))
        return _Small(self.width, name="mlp_2")(h)


class SelfAttention(nn.Module):
    """[B,N,D] -> [B,N,D]. The 3D outputs of qkv are (q|k|v, head, D/heads)."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        qkv = _Linear(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x)
        h = attend(*(split_heads(a, self.num_heads) for a in jnp.split(qkv, 3, axis=-1)))
        return _Linear(x.shape[-1], dtype=self.dtype, name="proj")(join_heads(h))


class ContextAttention(nn.Module):
    """Queries from x [B,N,D], keys and values from the context [B,L,E] -> [B,N,D], zero at the start."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], context: Float[Array, "B L E"]) -> Float[Array, "B N D"]:
        width = x.shape[-1]
        q = _Linear(width, dtype=self.dtype, name="q")(x)
        k, v = jnp.split(_Linear(2 * width, dtype=self.dtype, name="kv")(context), 2, axis=-1)
        h = attend(*(split_heads(a, self.num_heads) for a in (q, k, v)))
        return _Zero(width, dtype=self.dtype, name="proj")(join_heads(h))


class Mlp(nn.Module):
    """[B,N,D] -> [B,N,D] through 4D hidden units and GELU by its tanh formula."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        h = nn.gelu(_Linear(4 * x.shape[-1], dtype=self.dtype, name="fc1")(x), approximate=True)
        return _Linear(x.shape[-1], dtype=self.dtype, name="fc2")(h)


def _norm(x: Float[Array, "B N D"], dtype: DTypeLike) -> Float[Array, "B N D"]:
    """Each token to mean 0 and variance 1, with float32 statistics and no parameters."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + EPS)).astype(dtype)


def _modulated(x: Array, shift: Array, scale: Array, dtype: DTypeLike) -> Array:
    return _norm(x, dtype) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """x [B,N,D], c [B,D] after SiLU, context [B,L,E] or None -> [B,N,D]. The identity at the start."""

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], c: Float[Array, "B D"], context: Float[Array, "B L E"] | None = None
    ) -> Float[Array, "B N D"]:
        parts = _Zero(6 * x.shape[-1], dtype=self.dtype, name="adaLN_modulation_1")(c)[:, None]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(parts, 6, axis=-1)  # [B,1,D] each
        attention = SelfAttention(self.num_heads, dtype=self.dtype, name="attn")
        x = x + gate * attention(_modulated(x, shift, scale, self.dtype))
        if context is not None:
            x = x + ContextAttention(self.num_heads, dtype=self.dtype, name="cross_attn")(_norm(x, self.dtype), context)
        return x + mlp_gate * Mlp(dtype=self.dtype, name="mlp")(_modulated(x, mlp_shift, mlp_scale, self.dtype))


class FinalLayer(nn.Module):
    """x [B,N,D], c [B,D] after SiLU -> [B,N,features], zero at the start."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], c: Float[Array, "B D"]) -> Float[Array, "B N features"]:
        parts = _Zero(2 * x.shape[-1], dtype=self.dtype, name="adaLN_modulation_1")(c)[:, None]
        shift, scale = jnp.split(parts, 2, axis=-1)
        return _Zero(self.features, dtype=self.dtype, name="linear")(_modulated(x, shift, scale, self.dtype))


class DiT(nn.Module):
    """z_t [B,h,w,c], t [B] -> [B,h,w,out_channels] float32. Any h and w that patch_size divides.

    width: of a token; a multiple of 4 and of num_heads. depth: blocks.
    context_dim: width E of the context, or None without one.
    context: "adaln": it is one token (a class), added to the time embedding, after a linear map where E is not
        width; "cross_attention": tokens that every block attends to.
    learn_sigma: the last layer has 2*out_channels outputs, as in the released models, whose second half is the
        variance of a sampling step. Only the first half is returned; nothing here trains or uses the second.
    remat: recompute the blocks in the backward pass instead of keeping their activations.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int
    out_channels: int
    context_dim: int | None = None
    context: str = "cross_attention"
    learn_sigma: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "B h w c"],
        t: Real[Array, " B"],
        context: Float[Array, "B L E"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B h w out"]:
        """z [B,h,w,c], t [B] int32 or float32 in training steps, context [B,L,E]. `train` changes nothing: DiTs have
        no dropout."""
        self._check(z, context)
        rows, columns = (n // self.patch_size for n in z.shape[1:3])
        x = PatchEmbed(self.patch_size, self.width, dtype=self.dtype, name="x_embedder_proj")(z)
        x = x + positions(rows, columns, self.width).astype(x.dtype)
        c = TimestepEmbedder(self.width, name="t_embedder")(t)
        if context is not None and self.context == "adaln":
            c, context = c + self._vector(context), None
        c = nn.silu(c)
        block = nn.remat(DiTBlock) if self.remat else DiTBlock
        for i in range(self.depth):
            x = block(self.num_heads, dtype=self.dtype, name=f"blocks_{i}")(x, c, context)
        parts = 2 if self.learn_sigma else 1
        features = self.patch_size**2 * parts * self.out_channels
        x = FinalLayer(features, dtype=self.dtype, name="final_layer")(x, c)
        return self._joined(x.astype(jnp.float32), rows, columns, parts)

    def _check(self, z: Array, context: Array | None) -> None:
        height, width = z.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"latent of {height}x{width} does not divide into patches of patch_size={self.patch_size}")
        if self.width % math.lcm(4, self.num_heads):
            raise ValueError(f"width={self.width} must be a multiple of 4 and of num_heads={self.num_heads}")
        if self.context not in CONTEXTS:
            raise ValueError(f"context={self.context!r} is not one of {', '.join(CONTEXTS)}")
        found = None if context is None else context.shape[-1]
        if found != self.context_dim:
            raise ValueError(
                f"context of width {found}, but context_dim={self.context_dim}: give the DiT the context it was built "
                "for"
            )

    def _vector(self, context: Float[Array, "B L E"]) -> Float[Array, "B width"]:
        """The one token of a context, as wide as ours."""
        vector = only_token(context, self.context)
        return vector if vector.shape[-1] == self.width else _Linear(self.width, name="context_in")(vector)

    def _joined(self, x: Float[Array, "B N features"], rows: int, columns: int, parts: int) -> Float[Array, "B h w C"]:
        """The tokens' patches, of their channels the first of the `parts`: [B,N,p*p*parts*C] -> [B,h,w,C]."""
        x = x.reshape(-1, rows, columns, self.patch_size**2, parts, self.out_channels)[..., 0, :]
        return depth_to_space(x.reshape(-1, rows, columns, self.patch_size**2 * self.out_channels), self.patch_size)
