"""The noise-aware classifier of latents: the encoder half of the UNet with a pooled head (the original's
EncoderUNetModel, from Dhariwal and Nichol 2021, section 4). Module names follow the original's tree."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Real

from ldm_jax.arrays import Array
from ldm_jax.models.attention import AttentionPool
from ldm_jax.models.layers import UNET_EPS, Conv, GroupNorm32
from ldm_jax.models.unet import UNet

POOLS = ("attention", "adaptive")


class EncoderUNet(UNet):
    """z_t [B,h,w,c], t [B] -> logits [B,out_channels] float32; out_channels is the number of classes.

    pool: "attention" (AttentionPool, for one size of latents) or "adaptive" (the mean over all positions).
    The other fields are the UNet's; those of its way up and of its context have no effect.
    """

    pool: str = "attention"

    @nn.compact
    def __call__(  # type: ignore[override]  # labels are its output
        self,
        z: Float[Array, "B h w c"],
        t: Real[Array, " B"],
        context: Float[Array, "B L D"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B classes"]:
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is not one of {', '.join(POOLS)}")
        self._check(z, context, None)
        h, _ = self._encode(z, self._embedding(t, None), context, train)
        h = nn.silu(GroupNorm32(UNET_EPS, self.norm_groups, dtype=self.dtype, name="out_0")(h))
        if self.pool == "adaptive":
            head = Conv(self.out_channels, (1, 1), zero_init=True, dtype=self.dtype, name="out_3")
            return head(h.mean(axis=(1, 2), keepdims=True))[:, 0, 0].astype(jnp.float32)
        width = self.num_head_channels
        heads = self.num_heads if width == -1 else h.shape[-1] // width
        return AttentionPool(self.out_channels, heads, dtype=self.dtype, name="out_2")(h).astype(jnp.float32)
