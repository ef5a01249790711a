"""What the UNet is told about the image: every conditioner turns a batch into one `Cond`.

`context` reaches the UNet through cross-attention, `concat` is joined to its input channels (paper, section 3.3).
A conditioner has two methods:

    __call__(batch, encode) -> Cond   encode: image [B,H,W,C] -> scaled latent [B,h,w,c], the LDM's own
    null(batch) -> fields             its fields of the batch saying nothing, for classifier-free guidance;
                                      ValueError when the model has no such value

Submodules are named after the original's `cond_stage_model`.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.layers import Conv
from ldm_jax.models.text_encoder import EMBEDDING_STD, TextEncoder

Batch = dict[str, jax.Array]
Encode = Callable[[jax.Array], jax.Array]


class Cond(NamedTuple):
    """context [B,L,D] or None (in patches also [B,P,L,D], see editing.py); concat [B,h,w,C] or None."""

    context: jax.Array | None = None
    concat: jax.Array | None = None


class Unconditional(nn.Module):
    """Tells nothing."""

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        return Cond()

    def null(self, batch: Batch) -> Batch:
        raise ValueError("an unconditional model has no condition to leave out")


class ClassEmbedder(nn.Module):
    """batch["label"] [B] int -> one token [B,1,embed_dim]. With `null_class` a further row, the last, means "any"."""

    n_classes: int
    embed_dim: int
    null_class: bool = False

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        rows = self.n_classes + self.null_class
        table = nn.Embed(rows, self.embed_dim, embedding_init=nn.initializers.normal(1.0), name="embedding")
        return Cond(context=table(batch["label"])[:, None])

    def null(self, batch: Batch) -> Batch:
        if not self.null_class:
            raise ValueError(
                f"this class table has {self.n_classes} rows and none for 'no class' (config.conditioner.null_class)"
            )
        return {"label": jnp.full_like(batch["label"], self.n_classes)}


class TextConditioner(nn.Module):
    """batch["tokens"] [B,L] int -> [B,L,dim], for captions and layouts. `null_tokens` [L] stand for "nothing said".

    use_mask: batch["token_mask"] [B,L] keeps padding from being attended to and its rows of the context are 0;
    the released models have no mask. embedding_std: see TextEncoder.
    """

    vocab_size: int
    max_length: int
    dim: int
    depth: int
    null_tokens: tuple[int, ...] = ()
    null_mask: tuple[int, ...] = ()
    use_mask: bool = False
    embedding_std: float = EMBEDDING_STD
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        encoder = TextEncoder(
            self.vocab_size, self.max_length, self.dim, self.depth, self.embedding_std, self.dtype, name="transformer"
        )
        if not self.use_mask:
            return Cond(context=encoder(batch["tokens"]))
        mask = batch["token_mask"]
        return Cond(context=jnp.where(mask[:, :, None] != 0, encoder(batch["tokens"], mask), 0.0))

    def null(self, batch: Batch) -> Batch:
        tokens = batch["tokens"]
        if len(self.null_tokens) != tokens.shape[1]:
            raise ValueError(f"{len(self.null_tokens)} null tokens, but the batch has {tokens.shape[1]}")
        fields = {"tokens": jnp.broadcast_to(jnp.array(self.null_tokens, tokens.dtype), tokens.shape)}
        if self.use_mask:
            mask = batch["token_mask"]
            fields["token_mask"] = jnp.broadcast_to(jnp.array(self.null_mask, mask.dtype), mask.shape)
        return fields


class SpatialRescaler(nn.Module):
    """batch["segmentation"] [B,H,W] int -> one-hot, halved `n_stages` times by 2x2 means, 1x1 conv -> concat.

    Values outside 0..n_classes-1 (255 by custom) are "no class": a zero vector; all of them are the null.
    """

    n_classes: int
    out_channels: int
    n_stages: int = 2

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        x = batch["segmentation"]
        if x.ndim == 3:
            x = jax.nn.one_hot(x, self.n_classes)
        for _ in range(self.n_stages):
            x = nn.avg_pool(x, (2, 2), (2, 2))  # torch's bilinear x0.5 without antialiasing is the 2x2 mean
        return Cond(concat=Conv(self.out_channels, (1, 1), use_bias=False, name="channel_mapper")(x))

    def null(self, batch: Batch) -> Batch:
        return {"segmentation": jnp.full_like(batch["segmentation"], 255)}


class LowRes(nn.Module):
    """batch["low_res"] [B,h,w,3] in [-1,1], as large as the latent, joined to it as it is (super-resolution)."""

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        return Cond(concat=batch["low_res"])

    def null(self, batch: Batch) -> Batch:
        return {"low_res": jnp.zeros_like(batch["low_res"])}


class Inpainting(nn.Module):
    """batch["masked_image"] [B,H,W,3] (holes -1) encoded, and batch["mask"] [B,H,W,1] (1 = hole) in [-1,1].

    The mask is reduced to the latent's size by taking every f-th pixel. The null is a picture that is all hole.
    """

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        z = encode(batch["masked_image"])
        mask = batch["mask"]
        rows, columns = mask.shape[1] // z.shape[1], mask.shape[2] // z.shape[2]
        small = 2.0 * mask[:, ::rows, ::columns].astype(z.dtype) - 1.0
        return Cond(concat=jnp.concatenate([z, small], axis=-1))

    def null(self, batch: Batch) -> Batch:
        image, mask = batch["masked_image"], batch["mask"]
        return {"masked_image": jnp.full_like(image, -1.0), "mask": jnp.ones_like(mask)}


class Vectors(nn.Module):
    """batch["vectors"] [B,k,D] as the context: CLIP vectors of retrieved images (arXiv 2204.11824); null: zeros."""

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        return Cond(context=batch["vectors"])

    def null(self, batch: Batch) -> Batch:
        return {"vectors": jnp.zeros_like(batch["vectors"])}


class Hybrid(nn.Module):
    """Several conditions at once, each its own conditioner: contexts follow each other as tokens [B,L1+L2,D], spatial
    parts as channels. Dropping leaves out all of them together. The fields that they read must be different ones."""

    parts: dict[str, nn.Module]

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        conds = [part(batch, encode) for part in self.parts.values()]
        contexts = [cond.context for cond in conds if cond.context is not None]
        concats = [cond.concat for cond in conds if cond.concat is not None]
        return Cond(
            context=jnp.concatenate(contexts, axis=1) if contexts else None,
            concat=jnp.concatenate(concats, axis=-1) if concats else None,
        )

    def null(self, batch: Batch) -> Batch:
        fields = {}
        for part in self.parts.values():
            fields |= part.null(batch)
        return fields


def drop(conditioner: nn.Module, batch: Batch, dropped: jax.Array) -> Batch:
    """The batch with the conditioner's fields null where `dropped` [B] bool."""

    def choose(null: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(dropped.reshape(-1, *(1,) * (value.ndim - 1)), null, value)

    return batch | {name: choose(null, batch[name]) for name, null in conditioner.null(batch).items()}
