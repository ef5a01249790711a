"""First stages: image [B,H,W,C] in [-1,1] <-> latent z [B,h,w,c], h = H / 2^(levels-1) (LDM paper, 3.1).

AutoencoderKL, VQModel and IdentityFirstStage share one interface:
`latents(image, key=None)`, `decode(z)`, `__call__(image, key=None, train=False) -> (reconstruction, aux)`.
`latents` is `draw(moments(image), key)`: all that the encoder does, and what is left of it once that is known.
Latents and images are float32; `dtype` is the compute type in between.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Key

from ldm_jax.arrays import Array
from ldm_jax.models.attention import AttnBlock, LinearAttention
from ldm_jax.models.layers import (
    AE_EPS,
    AEDownsample,
    AEResnetBlock,
    Conv,
    GroupNorm32,
    Upsample,
    depth_to_space,
    space_to_depth,
)
from ldm_jax.models.quantizer import DiagonalGaussian, VectorQuantizer

Keys = Key[Array, ""] | Key[Array, " B"] | None  # one key, a key per sample, or none: nothing is drawn


def _attention(kind: str, name: str, groups: int, dtype: DTypeLike):
    """The module called `name`, or the identity for kind "none". Raises ValueError for other kinds."""
    if kind == "none":
        return lambda x: x
    if kind == "linear":
        return LinearAttention(dtype=dtype, name=name)
    if kind == "vanilla":
        return AttnBlock(groups, dtype=dtype, name=name)
    raise ValueError(f"attn_type={kind!r} is not one of vanilla, linear, none")


def _middle(
    x: Float[Array, "B h w C"], attn_type: str, dropout: float, groups: int, dtype: DTypeLike, train: bool
) -> Float[Array, "B h w C"]:
    """Block, attention (whatever attn_resolutions), block at the lowest resolution: [B,h,w,C] -> same."""
    x = AEResnetBlock(x.shape[-1], dropout, groups, dtype, name="mid_block_1")(x, train)
    x = _attention(attn_type, "mid_attn_1", groups, dtype)(x)
    return AEResnetBlock(x.shape[-1], dropout, groups, dtype, name="mid_block_2")(x, train)


class Encoder(nn.Module):
    """[B,H,W,in] -> [B,h,w,out_channels].

    attn_resolutions are sizes of the feature map when the input has size `resolution`, whatever the
    size of the actual input.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    attn_type: str
    resolution: int
    out_channels: int
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w out"]:
        size = self.resolution
        h = Conv(self.ch, dtype=self.dtype, name="conv_in")(image)
        for level, mult in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                name = f"down_{level}_block_{i}"
                h = AEResnetBlock(self.ch * mult, self.dropout, self.norm_groups, self.dtype, name=name)(h, train)
                if size in self.attn_resolutions:
                    h = _attention(self.attn_type, f"down_{level}_attn_{i}", self.norm_groups, self.dtype)(h)
            if level != len(self.ch_mult) - 1:
                h = AEDownsample(self.dtype, name=f"down_{level}_downsample")(h)
                size //= 2
        h = _middle(h, self.attn_type, self.dropout, self.norm_groups, self.dtype, train)
        h = nn.silu(GroupNorm32(AE_EPS, self.norm_groups, dtype=self.dtype, name="norm_out")(h))
        return Conv(self.out_channels, dtype=self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """[B,h,w,c] -> (image [B,H,W,out_channels], features [B,H,W,ch]: the input of the last convolution)."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    attn_type: str
    resolution: int
    out_channels: int
    dropout: float = 0.0
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "B h w c"], train: bool = False
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W ch"]]:
        levels = len(self.ch_mult)
        size = self.resolution // 2 ** (levels - 1)
        h = Conv(self.ch * self.ch_mult[-1], dtype=self.dtype, name="conv_in")(z)
        h = _middle(h, self.attn_type, self.dropout, self.norm_groups, self.dtype, train)
        for level in reversed(range(levels)):
            for i in range(self.num_res_blocks + 1):
                width = self.ch * self.ch_mult[level]
                name = f"up_{level}_block_{i}"
                h = AEResnetBlock(width, self.dropout, self.norm_groups, self.dtype, name=name)(h, train)
                if size in self.attn_resolutions:
                    h = _attention(self.attn_type, f"up_{level}_attn_{i}", self.norm_groups, self.dtype)(h)
            if level:
                h = Upsample(dtype=self.dtype, name=f"up_{level}_upsample")(h)
                size *= 2
        features = nn.silu(GroupNorm32(AE_EPS, self.norm_groups, dtype=self.dtype, name="norm_out")(h))
        return Conv(self.out_channels, dtype=self.dtype, name="conv_out")(features), features


class _Autoencoder(nn.Module):
    """Fields, encoder and decoder that both first stages share.

    patch: the networks see patches of patch x patch pixels as channels (space to depth), so that nothing is computed
        at full resolution; f = patch * 2^(levels-1). The paper's have 1.
    use_quant_conv, use_post_quant_conv: 1x1 convolutions after the encoder and before the decoder; without one its
        channels stay as they are: embed_dim is z_channels.
    norm_groups: groups of channels of each normalisation; it divides all widths. The original's networks have 32.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    attn_type: str = "vanilla"
    resolution: int = 256
    in_channels: int = 3
    out_channels: int = 3
    z_channels: int = 3
    embed_dim: int = 3
    dropout: float = 0.0
    patch: int = 1
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32

    def _build(self, encoder_channels: int, moments: int) -> None:
        """Submodules; the encoder ends with `encoder_channels`, quant_conv maps these to `moments`."""
        shared: dict[str, Any] = dict(
            ch=self.ch,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            attn_resolutions=self.attn_resolutions,
            attn_type=self.attn_type,
            resolution=self.resolution // self.patch,
            dropout=self.dropout,
            norm_groups=self.norm_groups,
            dtype=self.dtype,
        )
        self.encoder = Encoder(**shared, out_channels=encoder_channels)
        self.decoder = Decoder(**shared, out_channels=self.out_channels * self.patch**2)
        if self.use_quant_conv:
            self.quant_conv = Conv(moments, (1, 1), dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = Conv(self.z_channels, (1, 1), dtype=self.dtype)

    def _encode(self, image: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w moments"]:
        """[B,H,W,in] -> [B,h,w,moments] float32. Raises ValueError for sizes that do not divide by f."""
        f = self.patch * 2 ** (len(self.ch_mult) - 1)
        height, width, channels = image.shape[1:]
        if height % f or width % f or channels != self.in_channels:
            raise ValueError(
                f"image of {height}x{width}x{channels}: this first stage takes {self.in_channels} channels "
                f"and sizes that are multiples of {f}; resize or crop the images"
            )
        h = self.encoder(space_to_depth(image, self.patch) if self.patch > 1 else image, train)
        return (self.quant_conv(h) if self.use_quant_conv else h).astype(jnp.float32)

    def _decode(
        self, z: Float[Array, "B h w c"], train: bool = False
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B _ _ ch"]]:
        """[B,h,w,c] -> (image [B,H,W,out] float32, features [B,H/patch,W/patch,ch])."""
        image, features = self.decoder(self.post_quant_conv(z) if self.use_post_quant_conv else z, train)
        image = image.astype(jnp.float32)
        return depth_to_space(image, self.patch) if self.patch > 1 else image, features


class AutoencoderKL(_Autoencoder):
    """First stage with a Gaussian posterior, regularised by its KL divergence to N(0,1)."""

    def setup(self):
        self._build(2 * self.z_channels, 2 * self.embed_dim)

    def posterior(self, image: Float[Array, "B H W C"], train: bool = False) -> DiagonalGaussian:
        """[B,H,W,C] -> the distribution of z [B,h,w,c]."""
        return DiagonalGaussian(self._encode(image, train))

    def moments(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w moments"]:
        """[B,H,W,C] -> [B,h,w,2c]: mean and log-variance of the posterior."""
        return self._encode(image)

    def draw(self, moments: Float[Array, "B h w moments"], key: Keys = None) -> Float[Array, "B h w c"]:
        """[B,h,w,2c] -> z [B,h,w,c]: a posterior sample with a key (or a key per sample), else the mode."""
        posterior = DiagonalGaussian(moments)
        return posterior.mode() if key is None else posterior.sample(key)

    def latents(self, image: Float[Array, "B H W C"], key: Keys = None) -> Float[Array, "B h w c"]:
        """[B,H,W,C] -> z [B,h,w,c]: a posterior sample with a key (or a key per sample), else the mode."""
        return self.draw(self.moments(image), key)

    def decode(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """z [B,h,w,c] -> image [B,H,W,C], about [-1,1] (not clipped)."""
        return self._decode(z)[0]

    def __call__(
        self, image: Float[Array, "B H W C"], key: Keys = None, train: bool = False
    ) -> tuple[Float[Array, "B H W C"], dict[str, Array]]:
        """Reconstruction [B,H,W,C] and {"kl" [B], "latents" [B,h,w,c], "features" [B,H,W,ch]}."""
        posterior = self.posterior(image, train)
        z = posterior.mode() if key is None else posterior.sample(key)
        reconstruction, features = self._decode(z, train)
        return reconstruction, {"kl": posterior.kl(), "latents": z, "features": features}


class VQModel(_Autoencoder):
    """First stage with a codebook. Its latents are taken BEFORE quantisation, as LDMs are trained on them."""

    n_embed: int = 8192
    beta: float = 0.25
    legacy_beta: bool = True

    def setup(self):
        self._build(self.z_channels, self.embed_dim)
        self.quantize = VectorQuantizer(self.n_embed, self.embed_dim, self.beta, self.legacy_beta)

    def moments(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        """[B,H,W,C] -> [B,h,w,c]: z itself, not quantised."""
        return self._encode(image)

    def draw(self, moments: Float[Array, "B h w c"], key: Keys = None) -> Float[Array, "B h w c"]:
        """[B,h,w,c] -> the same. The key is not used: there is nothing to draw."""
        return moments

    def latents(self, image: Float[Array, "B H W C"], key: Keys = None) -> Float[Array, "B h w c"]:
        """[B,H,W,C] -> z [B,h,w,c], not quantised. The key is not used: there is nothing to draw."""
        return self.draw(self.moments(image))

    def decode(self, z: Float[Array, "B h w c"], quantize: bool = True) -> Float[Array, "B H W C"]:
        """z [B,h,w,c] -> image [B,H,W,C], about [-1,1] (not clipped). quantize=False skips the codebook."""
        if quantize:
            z, _, _ = self.quantize(z)
        return self._decode(z)[0]

    def decode_indices(self, indices: Int[Array, "B h w"]) -> Float[Array, "B H W C"]:
        """Codebook indices [B,h,w] -> image [B,H,W,C]."""
        return self._decode(self.quantize.lookup(indices))[0]

    def __call__(
        self, image: Float[Array, "B H W C"], key: Keys = None, train: bool = False
    ) -> tuple[Float[Array, "B H W C"], dict[str, Array]]:
        """Reconstruction [B,H,W,C] and {"codebook_loss" scalar, "indices" [B,h,w] int32, "latents"
        [B,h,w,c] before quantisation, "features" [B,H,W,ch]}."""
        z = self._encode(image, train)
        quantised, loss, indices = self.quantize(z)
        reconstruction, features = self._decode(quantised, train)
        aux = {"codebook_loss": loss, "indices": indices, "latents": z, "features": features}
        return reconstruction, aux


class IdentityFirstStage(nn.Module):
    """No first stage: diffusion on the pixels themselves (LDM-1). Has no parameters."""

    def latents(self, image: Float[Array, "B H W C"], key: Keys = None) -> Float[Array, "B H W C"]:
        """[B,H,W,C] -> the same."""
        return image

    def decode(self, z: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """[B,H,W,C] -> the same."""
        return z

    def __call__(
        self, image: Float[Array, "B H W C"], key: Keys = None, train: bool = False
    ) -> tuple[Float[Array, "B H W C"], dict[str, Array]]:
        return image, {"latents": image, "features": image}
