"""The two bottlenecks of the first stages: a vector-quantised codebook and a diagonal Gaussian posterior."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Key

from ldm_jax.arrays import Array
from ldm_jax.models import kernels

# Codes compared at a time: bounds the table of distances to [N, BLOCK] whatever the codebook's size.
BLOCK = 2048


def nearest_code(z: Float[Array, "N c"], codebook: Float[Array, "codes c"]) -> Int[Array, " N"]:
    """Index of the nearest row in squared L2, the first one in a tie: z [N,c], codebook [codes,c] -> [N] int32.

    |z|^2 is the same for all codes and left out. Products are taken in full float32, on every device.
    """
    codes, dim = codebook.shape
    block = min(BLOCK, codes)
    blocks = -(-codes // block)
    pad = blocks * block - codes
    norms = jnp.pad(jnp.sum(codebook**2, axis=-1), (0, pad), constant_values=jnp.inf).reshape(blocks, block)
    table = jnp.pad(codebook, ((0, pad), (0, 0))).reshape(blocks, block, dim)

    def step(best: tuple[Array, Array], part: tuple[Array, Array, Array]):
        rows, norm, start = part
        distance = norm - 2 * jnp.matmul(z, rows.T, precision=lax.Precision.HIGHEST)  # [N,block]
        value = jnp.min(distance, axis=-1)
        index = kernels.argmin(distance)
        closer = value < best[0]
        return (jnp.where(closer, value, best[0]), jnp.where(closer, start + index, best[1])), None

    # Made from z, so that under shard_map or vmap they vary as z does.
    start = (jnp.full_like(z[:, 0], jnp.inf), jnp.zeros_like(z[:, 0], jnp.int32))
    offsets = jnp.arange(blocks, dtype=jnp.int32) * block
    (_, index), _ = lax.scan(step, start, (table, norms, offsets))
    return index


class VectorQuantizer(nn.Module):
    """Nearest-code quantisation with a straight-through gradient (VQ-VAE, arXiv 1711.00937).

    With legacy_beta (the released models) beta weighs the codebook term, mean((zq - sg(z))^2), and the
    commitment term mean((sg(zq) - z)^2) has weight 1; without it the textbook's reverse.
    """

    n_embed: int
    embed_dim: int
    beta: float = 0.25
    legacy_beta: bool = True

    def setup(self):
        bound = 1.0 / self.n_embed

        def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        self.embedding = nn.Embed(self.n_embed, self.embed_dim, embedding_init=init)

    def __call__(
        self, z: Float[Array, "B h w c"]
    ) -> tuple[Float[Array, "B h w c"], Float[Array, ""], Int[Array, "B h w"]]:
        """z [B,h,w,c] -> (quantised z, gradient straight through; loss scalar; indices [B,h,w] int32)."""
        z = z.astype(jnp.float32)
        flat = lax.stop_gradient(z).reshape(-1, self.embed_dim)
        indices = nearest_code(flat, lax.stop_gradient(self.embedding.embedding)).reshape(z.shape[:-1])
        codes = self.lookup(indices)
        commitment = jnp.mean((lax.stop_gradient(codes) - z) ** 2)
        codebook = jnp.mean((codes - lax.stop_gradient(z)) ** 2)
        if self.legacy_beta:
            loss = commitment + self.beta * codebook
        else:
            loss = self.beta * commitment + codebook
        return z + lax.stop_gradient(codes - z), loss, indices

    def lookup(self, indices: Int[Array, "..."]) -> Float[Array, "... c"]:
        """Rows of the codebook: [...] int -> [...,c]."""
        return self.embedding.embedding[indices]


@flax.struct.dataclass
class DiagonalGaussian:
    """N(mean, exp(logvar)) per element of a latent; `moments` [B,h,w,2c] hold mean, then log-variance."""

    moments: Float[Array, "B h w moments"]

    @property
    def mean(self) -> Float[Array, "B h w c"]:
        return jnp.split(self.moments, 2, axis=-1)[0]

    @property
    def logvar(self) -> Float[Array, "B h w c"]:
        """Clamped to [-30, 20], as in the original."""
        return jnp.clip(jnp.split(self.moments, 2, axis=-1)[1], -30.0, 20.0)

    @property
    def std(self) -> Float[Array, "B h w c"]:
        return jnp.exp(0.5 * self.logvar)

    def mode(self) -> Float[Array, "B h w c"]:
        """[B,h,w,c]."""
        return self.mean

    def sample(self, key: Key[Array, ""] | Key[Array, " B"]) -> Float[Array, "B h w c"]:
        """[B,h,w,c]; `key` is one key, or a key per sample [B] (then sample i depends on key i alone)."""
        mean = self.mean
        if key.ndim:
            noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(key)
        else:
            noise = jax.random.normal(key, mean.shape)
        return mean + self.std * noise

    def kl(self) -> Float[Array, " B"]:
        """KL divergence to N(0, 1) in nats, summed over h, w, c: [B]."""
        terms = self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * jnp.sum(terms, axis=tuple(range(1, terms.ndim)))
