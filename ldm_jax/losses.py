"""First-stage arithmetic (paper, section 3.1 and appendix G), as the original computes it.

    error     = |x - xr| + perceptual_weight * LPIPS(x, xr)            per pixel and channel; or (x - xr)^2
    KL:  nll  = sum over H,W,C of (error / exp(logvar) + logvar), mean over the batch
         penalty = kl_weight * mean over the batch of the KL divergence
    VQ:  nll  = mean of error over everything
         penalty = codebook_weight * codebook loss
    generator loss     = nll + w * disc_factor * g + penalty,          g = -mean D(xr)
    w = disc_weight * clamp(|grad nll| / (|grad g| + 1e-4), 0, 1e4),   gradients to the decoder's last kernel
    discriminator loss = disc_factor * (hinge or vanilla loss)

`logvar` is 0: the original declares it as a parameter, but no optimiser lists it.

A training step needs one forward and one backward pass of the autoencoder, one of LPIPS and one of the
discriminator for the generator, and one of the discriminator on both images for itself:

    def forward(params):
        reconstruction, aux = autoencoder.apply({"params": params}, image, key, train=True)
        penalty = kl_weight * aux["kl"].mean()  # VQ: codebook_weight * aux["codebook_loss"]
        return (reconstruction, penalty), aux

    (reconstruction, p), pull_back, aux = jax.vjp(forward, params, has_aux=True)
    loss, grad, metrics, stats = generator_objective(
        image, reconstruction, aux["features"], params["decoder"]["conv_out"]["kernel"],
        family="kl", penalty=p, distance=lambda xr: lpips(image, xr), logits=discriminate,
        disc_factor=adopt_weight(step, disc_start), disc_weight=0.5)
    (grads,) = pull_back((grad, jnp.ones_like(p)))

and for the discriminator `jax.grad` of `discriminator_objective` on `stop_gradient(reconstruction)`, its
factor `adopt_weight(step, disc_learns_from)`: the original lets it learn from disc_start on, so that it
enters untrained; an earlier step lets it learn first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from ldm_jax.arrays import Array
from ldm_jax.errors import ConfigError
from ldm_jax.models.layers import space_to_depth

Tree = Any
Scalar = Float[Array, ""]
Logits = Float[Array, "B h w 1"]
Metrics = dict[str, Scalar]

FAMILIES = ("kl", "vq")
PIXEL_LOSSES = ("l1", "l2")
DISC_LOSSES = ("hinge", "vanilla")


def reconstruction_error(
    image: Float[Array, "B H W C"],
    reconstruction: Float[Array, "B H W C"],
    perceptual: Float[Array, " B"] | None = None,
    perceptual_weight: float = 1.0,
    pixel_loss: str = "l1",
) -> Float[Array, "B H W C"]:
    """Pixel loss ("l1" or "l2") plus the LPIPS distance [B] at every pixel and channel: [B,H,W,C] float32.

    Raises ValueError for another pixel loss.
    """
    if pixel_loss not in PIXEL_LOSSES:
        raise ValueError(f"pixel_loss={pixel_loss!r} is not one of {', '.join(PIXEL_LOSSES)}")
    difference = image.astype(jnp.float32) - reconstruction.astype(jnp.float32)
    error = jnp.abs(difference) if pixel_loss == "l1" else difference**2
    if perceptual is None:
        return error
    return error + perceptual_weight * perceptual.astype(jnp.float32)[:, None, None, None]


def nll_kl(
    error: Float[Array, "B H W C"], logvar: Scalar | float = 0.0, weights: Float[Array, " B"] | None = None
) -> Scalar:
    """Laplace likelihood with scale exp(logvar): sum over H,W,C, mean over the batch, of error [B,H,W,C].

    weights: [B] per sample; as in the original they are not divided by their sum.
    """
    nll = (error / jnp.exp(logvar) + logvar).sum((1, 2, 3))
    return (nll if weights is None else nll * weights).mean()


def nll_vq(error: Float[Array, "B H W C"]) -> Scalar:
    """Mean of error [B,H,W,C] over everything."""
    return error.mean()


def generator_loss(logits_fake: Logits) -> Scalar:
    """-mean of the logits [B,h,w,1] on reconstructions, for the hinge and the vanilla discriminator alike."""
    return -logits_fake.mean()


def hinge_d_loss(logits_real: Logits, logits_fake: Logits, weights: Float[Array, " B"] | None = None) -> Scalar:
    """0.5 (mean relu(1 - D(x)) + mean relu(1 + D(xr))); logits [B,h,w,1].

    weights: [B] per sample, divided by their sum (the original's hinge loss with exemplar weights).
    """
    real, fake = jax.nn.relu(1.0 - logits_real), jax.nn.relu(1.0 + logits_fake)
    if weights is None:
        return 0.5 * (real.mean() + fake.mean())
    per_sample = real.mean((1, 2, 3)) + fake.mean((1, 2, 3))
    return 0.5 * (weights * per_sample).sum() / weights.sum()


def vanilla_d_loss(logits_real: Logits, logits_fake: Logits) -> Scalar:
    """Cross-entropy, 0.5 (mean softplus(-D(x)) + mean softplus(D(xr))); logits [B,h,w,1]."""
    return 0.5 * (jax.nn.softplus(-logits_real).mean() + jax.nn.softplus(logits_fake).mean())


def adopt_weight(step: Int[Array, ""] | int, start: int, value: float = 1.0) -> Scalar:
    """`value` from step `start` on, 0 before; steps count from 0, one per batch."""
    return jnp.where(jnp.asarray(step) < start, 0.0, value)


def adaptive_weight(
    features: Float[Array, "B _ _ ch"],
    kernel: Float[Array, "3 3 ch _"],
    grad_nll: Float[Array, "B H W C"],
    grad_g: Float[Array, "B H W C"],
    *,
    max: float = 1e4,
    eps: float = 1e-4,
) -> Scalar:
    """The weight that gives both losses equal pull at the last layer: clamp(|d nll| / (|d g| + eps), 0, max).

    The norms are of the gradients to `kernel` [3,3,ch,C] of the last convolution. Its input `features`
    [B,H,W,ch] and the gradients to the reconstruction, `grad_nll` and `grad_g` [B,H,W,C], determine them,
    so no second pass through the decoder is needed. A constant for differentiation; finite for zero
    gradients. A decoder that makes pixel patches has a kernel [3,3,ch,p*p*C] and features [B,H/p,W/p,ch].
    """
    patch = grad_nll.shape[1] // features.shape[1]
    grad_nll, grad_g = (space_to_depth(grad, patch) for grad in (grad_nll, grad_g)) if patch > 1 else (grad_nll, grad_g)
    features, kernel = features.astype(jnp.float32), kernel.astype(jnp.float32)

    def last_convolution(kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    _, pull_back = jax.vjp(last_convolution, kernel)

    def norm(grad: Array) -> Array:
        return jnp.sqrt((pull_back(grad.astype(jnp.float32))[0] ** 2).sum())

    return jax.lax.stop_gradient(jnp.clip(norm(grad_nll) / (norm(grad_g) + eps), 0.0, max))


def generator_objective(
    image: Float[Array, "B H W C"],
    reconstruction: Float[Array, "B H W C"],
    features: Float[Array, "B _ _ ch"],
    kernel: Float[Array, "3 3 ch _"],
    *,
    family: str,
    penalty: Scalar | float,
    distance: Callable[[Array], Array] | None,
    logits: Callable[[Array], tuple[Array, Tree]] | None,
    disc_factor: Scalar | float,
    disc_weight: float,
    perceptual_weight: float = 1.0,
    pixel_loss: str = "l1",
    logvar: float = 0.0,
) -> tuple[Scalar, Float[Array, "B H W C"], Metrics, Tree]:
    """The autoencoder's loss and its gradient to the reconstruction, without differentiating the autoencoder.

    image, reconstruction: [B,H,W,C] in [-1,1]; features [B,H,W,ch], kernel [3,3,ch,C]: input and kernel of
    the decoder's last convolution. family: "kl" (summed) or "vq" (mean), see above. penalty: scalar, already
    weighted; its gradient reaches the autoencoder through the caller's vjp. distance: reconstruction -> LPIPS
    [B], or None. logits: reconstruction -> (logits [B,h,w,1], the discriminator's new running statistics), or None:
    without discriminator.
    Returns (loss, gradient to the reconstruction [B,H,W,C] in its dtype, metrics, running statistics).
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} is not one of {', '.join(FAMILIES)}")

    def nll_of(reconstruction):
        perceptual = None if distance is None else distance(reconstruction)
        error = reconstruction_error(image, reconstruction, perceptual, perceptual_weight, pixel_loss)
        nll = nll_kl(error, logvar) if family == "kl" else nll_vq(error)
        return nll, jnp.float32(0) if perceptual is None else perceptual.mean()

    def g_of(reconstruction):
        values, variables = logits(reconstruction)
        return generator_loss(values), variables

    (nll, perceptual), grad_nll = jax.value_and_grad(nll_of, has_aux=True)(reconstruction)
    measured = {
        "nll": nll,
        "l1": jnp.abs(image - reconstruction).mean(),
        "lpips": perceptual,
        "psnr": psnr(image, reconstruction).mean(),
    }
    if logits is None:
        return nll + penalty, grad_nll.astype(reconstruction.dtype), {"loss": nll + penalty} | measured, {}
    (g, variables), grad_g = jax.value_and_grad(g_of, has_aux=True)(reconstruction)
    d_weight = disc_weight * adaptive_weight(features, kernel, grad_nll, grad_g)
    pull = (d_weight * disc_factor).astype(jnp.float32)
    loss = nll + pull * g + penalty
    grad = (grad_nll.astype(jnp.float32) + pull * grad_g.astype(jnp.float32)).astype(reconstruction.dtype)
    return loss, grad, {"loss": loss, "g_loss": g, "d_weight": d_weight} | measured, variables


def discriminator_objective(
    logits_real: Logits, logits_fake: Logits, disc_factor: Scalar | float, kind: str = "hinge"
) -> tuple[Scalar, Metrics]:
    """disc_factor * hinge or vanilla loss, and the mean logits; logits [B,h,w,1].

    Raises ValueError for an unknown kind.
    """
    if kind not in DISC_LOSSES:
        raise ConfigError(f"discriminator loss {kind!r} is not one of {', '.join(DISC_LOSSES)}")
    loss = hinge_d_loss if kind == "hinge" else vanilla_d_loss
    value = disc_factor * loss(logits_real, logits_fake)
    metrics = {"disc_loss": value, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
    return value, metrics


def psnr(image: Float[Array, "B H W C"], reconstruction: Float[Array, "B H W C"]) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio in dB per image, [B]; images in [-1,1], the reconstruction clipped to it."""
    difference = image.astype(jnp.float32) - jnp.clip(reconstruction.astype(jnp.float32), -1.0, 1.0)
    mse = (difference**2).mean((1, 2, 3))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def codebook_use(indices: Int[Array, "..."], n_embed: int) -> Metrics:
    """How many of the `n_embed` codes a batch of indices (any shape, int32) uses.

    "codebook_usage": fraction of the codes that occur; "perplexity": exp of the entropy, 1 .. n_embed.
    """
    share = jnp.bincount(indices.ravel(), length=n_embed) / indices.size
    entropy = -(share * jnp.log(share + 1e-10)).sum()
    return {"codebook_usage": (share > 0).mean(), "perplexity": jnp.exp(entropy)}


def latent_statistics(z: Float[Array, "B h w c"]) -> Metrics:
    """Mean and standard deviation over everything of the latents [B,h,w,c]."""
    z = z.astype(jnp.float32)
    return {"latent_mean": z.mean(), "latent_std": z.std()}
