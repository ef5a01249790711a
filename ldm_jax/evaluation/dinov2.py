"""DINOv2's vision transformers with patches of 14 (Oquab et al., 2023): features of FD-DINOv2 (Stein et al., 2023).

params = dinov2.params("dinov2_vitl14", state)       # official or transformers' state dict
taps = DINOv2(*ARCHITECTURES["dinov2_vitl14"]).apply(params, x)     # x [B,224,224,3], ImageNet mean and std
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ldm_jax.arrays import Array
from ldm_jax.errors import UsageError
from ldm_jax.evaluation.layers import HIGHEST, Tree, conv, dense, parameters
from ldm_jax.evaluation.resize import cubic

PATCH = 14
GRID = 37  # patches a side in training: 518 x 518
HEAD = 64
EPS = 1e-6
ARCHITECTURES = {"dinov2_vits14": (384, 12), "dinov2_vitb14": (768, 12), "dinov2_vitl14": (1024, 24)}  # width, depth
TAPS = ("class_token", "patch_tokens", "first_tokens")


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        batch, tokens, width = x.shape
        qkv = dense(3 * width, name="qkv")(x).reshape(batch, tokens, 3, width // HEAD, HEAD)
        q, k, v = (qkv[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * HEAD**-0.5, k, precision=HIGHEST)
        out = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v, precision=HIGHEST)
        return dense(width, name="proj")(out.reshape(x.shape))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        width = x.shape[-1]
        return dense(width, name="fc2")(nn.gelu(dense(4 * width, name="fc1")(x), approximate=False))


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return x * self.param("gamma", nn.initializers.ones, x.shape[-1:])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        x = x + LayerScale(name="ls1")(Attention(name="attn")(_norm("norm1")(x)))
        return x + LayerScale(name="ls2")(MLP(name="mlp")(_norm("norm2")(x)))


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(EPS, use_fast_variance=False, name=name)


class DINOv2(nn.Module):
    """width: numbers a token; depth: blocks."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], taps: Sequence[str] = ("class_token",)) -> dict[str, Array]:
        """x: pixels less ImageNet's mean, divided by its standard deviation; sides are multiples of 14.

        {"class_token": [B,D] and "patch_tokens": [B,P,D] after the last norm, "first_tokens": [B,1+P,D] before the
        first block}. Raises UsageError for other sides and unknown taps.
        """
        batch, height, width, _ = x.shape
        if height % PATCH or width % PATCH:
            raise UsageError(f"DINOv2 takes images with sides that are multiples of {PATCH}, not {height}x{width}")
        if unknown := set(taps) - set(TAPS):
            raise UsageError(f"DINOv2 has no taps {sorted(unknown)}; it has {', '.join(TAPS)}")
        tokens = PatchEmbed(self.width, name="patch_embed")(x).reshape(batch, -1, self.width)
        start = self.param("cls_token", nn.initializers.zeros, (1, 1, self.width))
        positions = self.param("pos_embed", nn.initializers.zeros, (1, 1 + GRID**2, self.width))
        tokens = jnp.concatenate([jnp.broadcast_to(start, (batch, 1, self.width)), tokens], 1)
        tokens = first = tokens + interpolated(positions, height // PATCH, width // PATCH)
        for i in range(self.depth):
            tokens = Block(name=f"blocks_{i}")(tokens)
        tokens = _norm("norm")(tokens)
        found = {"class_token": tokens[:, 0], "patch_tokens": tokens[:, 1:], "first_tokens": first}
        return {tap: found[tap] for tap in taps}


class PatchEmbed(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        return conv(self.width, PATCH, PATCH, name="proj")(x)


def interpolated(positions: Float[Array, "1 N D"], height: int, width: int) -> Float[Array, "1 M D"]:
    """The positions of 1 + 37 x 37 tokens for 1 + height x width of them.

    As the official code: bicubic with a = -0.75, the edge repeated, no antialiasing, and scaled by (h + 0.1) / 37.
    """
    if (height, width) == (GRID, GRID):
        return positions
    grid = positions[0, 1:].reshape(GRID, GRID, -1)
    grid = jnp.einsum("hi,wj,ijd->hwd", _weights(height), _weights(width), grid, precision=HIGHEST)
    return jnp.concatenate([positions[:, :1], grid.reshape(1, height * width, -1)], 1)


def _weights(count: int) -> Float[np.ndarray, "count 37"]:
    """How much each of the 37 positions gives to each of the new ones."""
    source = (np.arange(count) + 0.5) * (GRID / (count + 0.1)) - 0.5
    lower = np.floor(source).astype(int)
    weights = np.zeros((count, GRID))
    for neighbour in (-1, 0, 1, 2):
        place = np.clip(lower + neighbour, 0, GRID - 1)
        np.add.at(weights, (np.arange(count), place), cubic(source - (lower + neighbour), -0.75))
    return weights.astype(np.float32)


def params(name: str, state: Mapping[str, np.ndarray]) -> Tree:
    """Of ARCHITECTURES[name], from the official state dict or transformers'. UsageError for one of another network."""
    if any(key.startswith("encoder.layer.") for key in state):
        state = official_names(state)
    state = {key: array for key, array in state.items() if key != "mask_token"}
    return parameters(DINOv2(*ARCHITECTURES[name]), (PATCH, PATCH), state)


TRANSFORMERS_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm.": "norm.",
}


def official_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' state dict with the official keys; query, key and value become one matrix again."""
    official, attention = {}, {}
    for key, array in state.items():
        for theirs, ours in TRANSFORMERS_NAMES.items():
            key = key.replace(theirs, ours)
        block, found, part = key.partition("attention.attention.")
        if found:
            attention[block, *part.split(".")] = array
        else:
            official[key] = array
    for block, _, kind in [place for place in attention if place[1] == "query"]:
        parts = [attention[block, part, kind] for part in ("query", "key", "value")]
        official[f"{block}attn.qkv.{kind}"] = np.concatenate(parts)
    return official
