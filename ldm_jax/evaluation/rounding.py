"""Outputs of a model in [-1,1] to uint8, by the rules in use. The rule moves FID: compare like with like.

`ldm_jax.images.to_uint8` rounds to the nearest, halves to even; on nearly all numbers it gives what `rounded` gives.
"""

import numpy as np
from jaxtyping import Float, UInt8


def guided_diffusion(samples: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """(x + 1) * 127.5, clipped, truncated: ADM's scripts."""
    samples = np.asarray(samples, np.float32)
    return np.clip((samples + np.float32(1)) * np.float32(127.5), 0, 255).astype(np.uint8)


def latent_diffusion(samples: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """(x + 1) / 2 clipped to 0..1, times 255, truncated: the scripts of latent diffusion."""
    samples = np.asarray(samples, np.float32)
    return (np.clip((samples + np.float32(1)) / np.float32(2), 0, 1) * np.float32(255)).astype(np.uint8)


def rounded(samples: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """(x + 1) / 2 times 255, rounded to the nearest, halves up, clipped: torchvision's save_image."""
    samples = np.asarray(samples, np.float32)
    scaled = (samples + np.float32(1)) / np.float32(2) * np.float32(255) + np.float32(0.5)
    return np.clip(scaled, 0, 255).astype(np.uint8)


ROUNDINGS = {"guided_diffusion": guided_diffusion, "latent_diffusion": latent_diffusion, "rounded": rounded}
