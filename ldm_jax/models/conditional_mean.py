"""A network that sees only the condition: it learns the mean latent of each condition, and so teaches the conditioner.

    output = linear map of the mean of the context's tokens

With the prediction "x0" the loss of the diffusion model becomes a regression, |z - output|^2, which does not depend on
z_t and t. A step costs little more than the conditioner, so that a text encoder sees each caption hundreds of times in
minutes. A diffusion model then begins from what it has learnt (config.conditioner.checkpoint).
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Real

from ldm_jax.arrays import Array


class ConditionalMean(nn.Module):
    """Takes the place of the UNet (config.network.kind="mean")."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "B h w c"],
        t: Real[Array, " B"],
        context: Float[Array, "B L D"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B h w c"]:
        """[B,h,w,c] float32 from context [B,L,D]; of z only the shape is used, and t not at all.

        Raises ValueError without a context.
        """
        if context is None:
            raise ValueError("the conditional mean needs a context: a text, a class, or a layout")
        shape = z.shape[1:]
        vector = context.astype(self.dtype).mean(1)
        return nn.Dense(math.prod(shape), dtype=self.dtype, name="out")(vector).astype(jnp.float32).reshape(-1, *shape)
