"""The key layout of the original's checkpoints, and what of it has no place in our trees.

A model's weights are one tree with these parts, each below its own prefix of the original's state dict:

    LDM           unet, conditioner, logvar, first_stage, latent_scale, and ema (the averaged UNet)
    first stage   autoencoder, discriminator ({"params", "batch_stats"})

The original's EMA names are those of the UNet without any dots (model_ema.diffusion_modeltime_embed0weight).
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from ldm_jax import tree
from ldm_jax.convert import names
from ldm_jax.convert.names import torch_key
from ldm_jax.errors import UsageError

UNET, FIRST_STAGE, CONDITIONER, EMA = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model_ema."
PREFIXES = {
    "unet": UNET,
    "conditioner": CONDITIONER,
    "first_stage": FIRST_STAGE,
    "autoencoder": "",
    "discriminator": "loss.discriminator.",
}
SCALARS = {"latent_scale": "scale_factor", "logvar": "logvar"}

SCHEDULE = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
EMA_DECAY, EMA_UPDATES = "model_ema.decay", "model_ema.num_updates"
# Keys without a leaf of ours: tables that a config gives, LPIPS, counters, a vocabulary head that no diffusion model
# reads, the first stage's loss inside an LDM, the average of a model that is to have none, and the second copy of
# the first stage that encodes the condition of the inpainting model.
BESIDE = (
    rf"({'|'.join(SCHEDULE)}|lvlb_weights)",
    r"model_ema\..*",
    r"(first_stage_model\.)?loss\.(?!discriminator\.).*",
    r"first_stage_model\.loss\..*",
    r".*num_batches_tracked",
    r"cond_stage_model\.transformer\.to_logits\.(weight|bias)",
    r"cond_stage_model\.(encoder|decoder|quantize|quant_conv|post_quant_conv)\..*",
)


def original_key(path: str) -> str:
    """The original's key of a leaf "unet/...", "ema/...", "autoencoder/...": see the module's docstring."""
    part, _, rest = path.partition("/")
    if part in SCALARS:
        return SCALARS[part]
    if part == "ema":
        return EMA + ("diffusion_model." + torch_key(rest)).replace(".", "")
    return PREFIXES[part] + torch_key(rest)


def original_keys(template: tree.Tree) -> dict[str, str]:
    """{path of a leaf: the original's key} of a weights tree."""
    return {path: original_key(path) for path in tree.flatten(template)}


def has_ema(keys: Iterable[str]) -> bool:
    """Whether a state dict with these keys holds averaged weights."""
    return any(key.startswith(EMA) and key not in (EMA_DECAY, EMA_UPDATES) for key in keys)


def split(state: Mapping[str, np.ndarray], template: tree.Tree) -> tuple[tree.Tree, dict[str, np.ndarray]]:
    """(the weights tree of `template` filled from a state dict, the known rest that has no leaf).

    Raises UsageError listing the original's keys when one that is not known to be left over has no leaf, or a
    leaf has no key, or shapes differ.
    """
    wanted = set(original_keys(template).values())
    rest = re.compile("|".join(f"(?:{pattern})" for pattern in BESIDE))
    beside = {key: array for key, array in state.items() if key not in wanted and rest.fullmatch(key)}
    used = {key: array for key, array in state.items() if key not in beside}
    return names.from_torch(used, template, original_key), beside


def first_stage_of(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first stage inside an LDM's state dict, with a first stage's own keys; empty when it holds none."""
    return {key.removeprefix(FIRST_STAGE): a for key, a in state.items() if key.startswith(FIRST_STAGE)}


def schedule_buffers(betas: np.ndarray) -> dict[str, np.ndarray]:
    """The tables [T] that the original keeps beside its weights, float32, from betas [T] float64."""
    alpha_bar = np.cumprod(1 - betas)
    prev = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1 - prev) / (1 - alpha_bar)
    tables = (
        betas, alpha_bar, prev, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), np.log(1 - alpha_bar),
        np.sqrt(1 / alpha_bar), np.sqrt(1 / alpha_bar - 1), variance, np.log(np.maximum(variance, 1e-20)),
        betas * np.sqrt(prev) / (1 - alpha_bar), (1 - prev) * np.sqrt(1 - betas) / (1 - alpha_bar),
    )  # fmt: skip
    return {key: table.astype(np.float32) for key, table in zip(SCHEDULE, tables)}


def check_schedule(state: Mapping[str, np.ndarray], betas: np.ndarray) -> None:
    """Raises UsageError when the state dict's betas [T] are not `betas`: the config is another model's."""
    if "betas" not in state:
        return
    theirs = state["betas"]
    near = 1e-2 if theirs.dtype.itemsize == 2 else 1e-4
    if theirs.shape != betas.shape or not np.allclose(theirs.astype(np.float64), betas, rtol=near, atol=0):
        if theirs.ndim != 1 or not theirs.size:
            raise UsageError(f"the file's noise schedule has betas of the shape {theirs.shape}, not one for each step")
        shown = [f"{len(b)} steps from {float(b[0]):.6g} to {float(b[-1]):.6g}" for b in (theirs, betas)]
        raise UsageError(
            f"the file's noise schedule has betas of {shown[0]}, the config's {shown[1]}. It is the config of another "
            "model, or needs --config.diffusion.start, .end, .timesteps or .schedule"
        )
