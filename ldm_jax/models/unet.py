"""The denoiser: a UNet over latents with a time embedding and, optionally, cross-attention to a context.

The layout is ADM's (arXiv 2105.05233) with the spatial transformers of the LDM paper (3.3, appendix E.2.1).
Module names follow the original's tree: input_blocks_<n>_<i>, middle_block_<i>, output_blocks_<n>_<i>.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Real

from ldm_jax.arrays import Array
from ldm_jax.models.attention import AttentionBlock, SpatialTransformer
from ldm_jax.models.layers import (
    UNET_EPS,
    Conv,
    Dense,
    Downsample,
    GroupNorm32,
    ResBlock,
    Upsample,
    only_token,
    timestep_embedding,
)

CONTEXTS = ("cross_attention", "embedding", "pooled")


class UNet(nn.Module):
    """z_t [B,h,w,c], t [B] -> [B,h,w,out_channels] float32.

    attention_downsamples: attend at the levels where the latent has been reduced by these factors (the
        original calls them attention_resolutions). The middle block always attends.
    num_heads / num_head_channels: a fixed number of heads, or (when not -1, it wins) a fixed width of each.
    use_spatial_transformer: transformer blocks instead of AttentionBlocks; context_dim is the width D of
        the context, or None for transformers without one.
    resblock_updown: resample inside ResBlocks; conv_resample: else with (True) or without convolutions.
    legacy: width of a transformer's heads when num_head_channels does not divide the channels:
        channels // heads (True) or num_head_channels (False).
    num_classes: adds an embedding of the labels y [B] to the time embedding.
    context: how it gets in: "cross_attention" (any number of tokens); "embedding": its one token (a class) is added
        to the time embedding after a linear map, as ADM has it for classes; "pooled": so is the mean of its tokens (a
        caption). The last two need no transformers.
    n_embed: predict logits of that many codebook entries instead of out_channels values.
    norm_groups: groups of channels of each normalisation; it divides all widths. The original's networks have 32.
    remat: recompute the blocks in the backward pass instead of keeping their activations.
    """

    model_channels: int
    out_channels: int
    num_res_blocks: int
    channel_mult: tuple[int, ...]
    attention_downsamples: tuple[int, ...]
    num_heads: int = -1
    num_head_channels: int = -1
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    num_classes: int | None = None
    dropout: float = 0.0
    legacy: bool = True
    use_new_attention_order: bool = False
    n_embed: int | None = None
    context: str = "cross_attention"
    norm_groups: int = 32
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "B h w c"],
        t: Real[Array, " B"],
        context: Float[Array, "B L D"] | None = None,
        *,
        train: bool = False,
        y: Int[Array, " B"] | None = None,
    ) -> Float[Array, "B h w out"]:
        """z [B,h,w,c], t [B] int32 or float32 in training steps, context [B,L,D], y [B] int labels."""
        self._check(z, context, y)
        emb = self._embedding(t, y)
        if context is not None and self._embeds_context:
            emb, context = emb + self._vector(context), None
        levels = len(self.channel_mult)
        h, skips = self._encode(z, emb, context, train)

        block = 0
        for level in reversed(range(levels)):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                features = self.model_channels * self.channel_mult[level]
                h = self._res_block(f"output_blocks_{block}_0", h, emb, train, features)
                part = 1
                if 2**level in self.attention_downsamples:
                    h = self._attention(f"output_blocks_{block}_1", h, context)
                    part = 2
                if level and i == self.num_res_blocks:
                    h = self._up(f"output_blocks_{block}_{part}", h, emb, train)
                block += 1
        return self._head(h)

    @property
    def _embeds_context(self) -> bool:
        return self.context != "cross_attention"

    def _check(self, z: Array, context: Array | None, y: Array | None) -> None:
        f = 2 ** (len(self.channel_mult) - 1)
        height, width = z.shape[1:3]
        if height % f or width % f:
            raise ValueError(
                f"latent of {height}x{width}: this UNet halves {len(self.channel_mult) - 1} times, "
                f"so both sizes must be multiples of {f}"
            )
        if (self.num_heads == -1) == (self.num_head_channels == -1):
            raise ValueError(f"num_heads={self.num_heads}, num_head_channels={self.num_head_channels}: set exactly one")
        if self.context not in CONTEXTS:
            raise ValueError(f"context={self.context!r} is not one of {', '.join(CONTEXTS)}")
        context_width = None if context is None else context.shape[-1]
        attends = self.use_spatial_transformer or self._embeds_context
        if context_width != self.context_dim or (context_width is not None and not attends):
            raise ValueError(
                f"context of width {context_width}, but context_dim={self.context_dim} and "
                f"use_spatial_transformer={self.use_spatial_transformer}: give the UNet the context it was "
                f"built for"
            )
        if self._embeds_context and self.use_spatial_transformer:
            raise ValueError(
                f"context={self.context!r} with use_spatial_transformer=True: nothing would attend to the context"
            )
        if (y is None) != (self.num_classes is None):
            state = "missing" if y is None else "given"
            raise ValueError(f"labels y are {state}, but num_classes={self.num_classes}: both or neither")

    def _embedding(self, t: Array, y: Array | None) -> Array:
        """[B] -> [B,4*model_channels] float32; small, so kept in float32 whatever the compute type."""
        emb = timestep_embedding(t, self.model_channels)
        emb = nn.silu(Dense(4 * self.model_channels, name="time_embed_0")(emb))
        emb = Dense(4 * self.model_channels, name="time_embed_2")(emb)
        if self.num_classes is not None:
            normal = nn.initializers.normal(1.0)
            table = nn.Embed(self.num_classes, emb.shape[-1], embedding_init=normal, name="label_emb")
            emb = emb + table(y)
        return emb

    def _vector(self, context: Float[Array, "B L D"]) -> Float[Array, "B width"]:
        """The one token of a context, or the mean of its tokens, for the time embedding."""
        pooled = self.context == "pooled"
        vector = context.astype(jnp.float32).mean(1) if pooled else only_token(context, self.context)
        return Dense(4 * self.model_channels, name="context_embed")(vector)

    def _encode(self, z: Array, emb: Array, context: Array | None, train: bool) -> tuple[Array, list[Array]]:
        """The way down and the middle: features [B,h',w',C'], and what the way up joins, the last first."""
        levels = len(self.channel_mult)
        h = Conv(self.model_channels, dtype=self.dtype, name="input_blocks_0_0")(z)
        skips, block = [h], 1
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                h = self._res_block(f"input_blocks_{block}_0", h, emb, train, self.model_channels * mult)
                if 2**level in self.attention_downsamples:
                    h = self._attention(f"input_blocks_{block}_1", h, context)
                skips.append(h)
                block += 1
            if level != levels - 1:
                h = self._down(f"input_blocks_{block}_0", h, emb, train)
                skips.append(h)
                block += 1

        h = self._res_block("middle_block_0", h, emb, train, h.shape[-1])
        h = self._attention("middle_block_1", h, context)
        return self._res_block("middle_block_2", h, emb, train, h.shape[-1]), skips

    def _res_block(self, name: str, h: Array, emb: Array, train: bool, features: int, *, up=False, down=False) -> Array:
        block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        return block(
            features,
            use_scale_shift_norm=self.use_scale_shift_norm,
            up=up,
            down=down,
            dropout=self.dropout,
            groups=self.norm_groups,
            dtype=self.dtype,
            name=name,
        )(h, emb, train)

    def _attention(self, name: str, h: Array, context: Array | None) -> Array:
        channels, fixed_width = h.shape[-1], self.num_head_channels != -1
        heads = channels // self.num_head_channels if fixed_width else self.num_heads
        if not self.use_spatial_transformer:
            attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock
            return attention(heads, self.use_new_attention_order, self.norm_groups, dtype=self.dtype, name=name)(h)
        head_dim = self.num_head_channels if fixed_width and not self.legacy else channels // heads
        transformer = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        block = transformer(heads, head_dim, self.transformer_depth, self.norm_groups, dtype=self.dtype, name=name)
        return block(h, context)

    def _down(self, name: str, h: Array, emb: Array, train: bool) -> Array:
        if self.resblock_updown:
            return self._res_block(name, h, emb, train, h.shape[-1], down=True)
        return Downsample(self.conv_resample, dtype=self.dtype, name=name)(h)

    def _up(self, name: str, h: Array, emb: Array, train: bool) -> Array:
        if self.resblock_updown:
            return self._res_block(name, h, emb, train, h.shape[-1], up=True)
        return Upsample(self.conv_resample, dtype=self.dtype, name=name)(h)

    def _head(self, h: Array) -> Array:
        if self.n_embed is not None:
            h = GroupNorm32(UNET_EPS, self.norm_groups, dtype=self.dtype, name="id_predictor_0")(h)
            return Conv(self.n_embed, (1, 1), dtype=self.dtype, name="id_predictor_1")(h).astype(jnp.float32)
        h = nn.silu(GroupNorm32(UNET_EPS, self.norm_groups, dtype=self.dtype, name="out_0")(h))
        return Conv(self.out_channels, zero_init=True, dtype=self.dtype, name="out_2")(h).astype(jnp.float32)
