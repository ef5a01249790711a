"""PatchGAN discriminator of the first stage (Isola et al., 2017, appendix 6.1.2).

Parameters are named after the `main` sequence of the original's NLayerDiscriminator: main_0 (convolution),
main_2 (convolution), main_3 (normalisation), main_5, main_6, ... Every convolution is 4x4 with one pixel
of padding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from ldm_jax.arrays import Array

MOMENTUM = 0.1  # weight of the newest batch in the running statistics
EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics, [B,H,W,C] -> [B,H,W,C].

    Differs from flax's: the running variance is the unbiased one, and the statistics are always float32.
    With the batch split over devices under jit, the statistics are those of the global batch.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        c = x.shape[-1]
        scale = self.param("scale", _normal_around_one, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        x = x.astype(jnp.float32)
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            if not self.is_initializing():
                n = x.size // c
                unbiased = var * (n / max(n - 1, 1))
                running_mean.value += MOMENTUM * (jax.lax.stop_gradient(mean) - running_mean.value)
                running_var.value += MOMENTUM * (jax.lax.stop_gradient(unbiased) - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        return ((x - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias).astype(self.dtype)


class ActNorm(nn.Module):
    """scale * (x + loc) per channel, [B,H,W,C] -> [B,H,W,C] (Glow, section 3.1).

    `init` sets both so that its batch, which must be real data, comes out with mean 0 and deviation 1.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = x.astype(jnp.float32)
        loc = self.param("loc", lambda _: -x.mean((0, 1, 2)))
        scale = self.param("scale", lambda _: 1 / (x.std((0, 1, 2), ddof=1) + 1e-6))
        return (scale * (x + loc)).astype(self.dtype)


class NLayerDiscriminator(nn.Module):
    """One logit per patch; with 3 layers a patch is 70 x 70 pixels.

    ndf: width of the first layer; it doubles per layer, up to 8 ndf. n_layers: strided convolutions.
    """

    ndf: int = 64
    n_layers: int = 3
    use_actnorm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w 1"]:
        """[B,H,W,C] in [-1,1] -> logits [B,h,w,1] float32, h = H/8 - 2 with 3 layers.

        train: normalise with the statistics of this batch and move the running ones ("batch_stats", mutable).
        Raises ValueError when the image is too small to leave a patch.
        """
        smallest = 3 * 2**self.n_layers
        if min(image.shape[1:3]) < smallest:
            raise ValueError(
                f"an image of {image.shape[1]}x{image.shape[2]} is too small for {self.n_layers} layers "
                f"(at least {smallest}x{smallest}); use fewer: --config.loss.disc_layers"
            )

        def conv(i: int, features: int, stride: int, x: Array, use_bias: bool = True) -> Array:
            return nn.Conv(
                features, (4, 4), stride, padding=1, use_bias=use_bias, dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.02), name=f"main_{i}",
            )(x)  # fmt: skip

        x = nn.leaky_relu(conv(0, self.ndf, 2, image), 0.2)
        for layer in range(1, self.n_layers + 1):
            i = 3 * layer - 1
            stride = 2 if layer < self.n_layers else 1
            # A bias before BatchNorm would be subtracted again.
            x = conv(i, self.ndf * min(2**layer, 8), stride, x, use_bias=self.use_actnorm)
            if self.use_actnorm:
                x = ActNorm(self.dtype, name=f"main_{i + 1}")(x)
            else:
                x = BatchNorm(self.dtype, name=f"main_{i + 1}")(x, train)
            x = nn.leaky_relu(x, 0.2)
        return conv(3 * self.n_layers + 2, 1, 1, x).astype(jnp.float32)


def _normal_around_one(key: Array, shape: tuple[int, ...]) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape)
