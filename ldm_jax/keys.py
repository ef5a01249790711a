"""Random keys: one root per seed, one stream per purpose, one key per sample; never the same key twice."""

import jax
import jax.numpy as jnp

# Far above any step or image index, which are folded into the same root.
_PURPOSES = {"init": 2**31, "evaluate": 2**31 + 1, "latent_scale": 2**31 + 2, "generate": 2**31 + 3,
             "noise": 2**31 + 4}  # fmt: skip


def purpose_of(root: jax.Array, purpose: str) -> jax.Array:
    """The stream of a root key for "init", "evaluate", "latent_scale", "generate" or "noise"."""
    return jax.random.fold_in(root, _PURPOSES[purpose])


def purpose_key(seed: int | jax.Array, purpose: str) -> jax.Array:
    """The same from a seed."""
    return purpose_of(jax.random.key(seed), purpose)


def keys_of(key: jax.Array, indices: jax.Array) -> jax.Array:
    """One key for each of the indices [B] (int32)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def sample_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key per global sample index [B], the same however the batch is laid out on devices."""
    return keys_of(key, jnp.arange(batch_size))


def stream(keys: jax.Array, i: int) -> jax.Array:
    """Independent keys [B] for purpose `i` from sample keys [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B,*shape] float32, row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
