"""The BERT-style transformer tau_theta over tokens (LDM paper, section 3.3 and table 17).

Pre-norm encoder, learned token and absolute position embeddings, heads of 64 whatever the width, an MLP of
4 x width with the exact GELU, a final LayerNorm. It is trained from scratch, together with the UNet.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, Shaped

from ldm_jax.arrays import Array
from ldm_jax.models.attention import LAYER_NORM_EPS, CrossAttention, FeedForward
from ldm_jax.models.layers import Dense

HEADS, HEAD_DIM = 8, 64  # the original's, at every width
EMBEDDING_STD = 0.02  # of new embeddings


def _norm(name: str, dtype: DTypeLike) -> nn.LayerNorm:
    return nn.LayerNorm(LAYER_NORM_EPS, dtype=dtype, use_fast_variance=False, name=name)


class TextEncoder(nn.Module):
    """tokens [B,L] int -> [B,L,dim] float32. Submodules are named after the original's tree.

    Without a mask padding is attended to like any token, as in the released models. embedding_std: of new token and
    position embeddings. At the original's 0.02 the first layers' outputs, which all tokens share, drown them at first;
    at 1 a small model learns which token is which much sooner.
    """

    vocab_size: int
    max_length: int
    dim: int
    depth: int
    embedding_std: float = EMBEDDING_STD
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"], mask: Shaped[Array, "B L"] | None = None, *, logits: bool = False
    ) -> Float[Array, "B L D"]:
        """mask [B,L]: nonzero = a real token, attended to by the real tokens; rows of the others are unusable.

        logits: the vocabulary head's [B,L,vocab_size] instead, which no diffusion model uses.
        Raises ValueError for more tokens than positions.
        """
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens; this text encoder has {self.max_length} positions")
        init = nn.initializers.normal(self.embedding_std)
        x = nn.Embed(self.vocab_size, self.dim, embedding_init=init, name="token_emb")(tokens)
        x = x + _Positions(self.max_length, self.dim, self.embedding_std, name="pos_emb")(length)
        pairs = None if mask is None else (mask[:, :, None] != 0) & (mask[:, None, :] != 0)
        x = _Layers(self.depth, self.dtype, name="attn_layers")(x.astype(self.dtype), pairs)
        x = _norm("norm", self.dtype)(x)
        if logits:
            x = Dense(self.vocab_size, dtype=self.dtype, name="to_logits")(x)
        return x.astype(jnp.float32)


class _Positions(nn.Module):
    max_length: int
    dim: int
    std: float

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "{length} D"]:
        """[length,dim]."""
        init = nn.initializers.normal(self.std)
        return nn.Embed(self.max_length, self.dim, embedding_init=init, name="emb")(jnp.arange(length))


class _Layers(nn.Module):
    """Attention and MLP in turn: `layers_<2i>` and `layers_<2i+1>`, each after its norm, with residuals."""

    depth: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], mask: Bool[Array, "B L L"] | None) -> Float[Array, "B L D"]:
        for i in range(self.depth):
            attention = CrossAttention(HEADS, HEAD_DIM, out_name="to_out", dtype=self.dtype, name=f"layers_{2 * i}_1")
            x = x + attention(_norm(f"layers_{2 * i}_0", self.dtype)(x), mask=mask)
            mlp = FeedForward(gated=False, dtype=self.dtype, name=f"layers_{2 * i + 1}_1")
            x = x + mlp(_norm(f"layers_{2 * i + 1}_0", self.dtype)(x))
        return x
