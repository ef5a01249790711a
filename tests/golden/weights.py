"""Deterministic weights and inputs from numpy only.

Every tensor depends only on (its name, its shape) so any implementation can
regenerate it without the golden-producing code.

    rng    = np.random.Generator(np.random.PCG64(seed(name)))
    seed   = int.from_bytes(sha256(name).digest()[:8], 'little')

Rules for `make_weight(key, shape)`, first match wins:
    VQ codebook  key ends 'quantize.embedding.weight'    uniform[-1.5, 1.5)
    other embedding tables (see EMB)                     0.5 * n
    'running_mean'                                       0.1 * n
    'running_var'                                        1 + 0.1 * |n|
    'num_batches_tracked' / 'num_updates'                int64 / int32 zero
    ndim >= 2                                            n / sqrt(prod(shape[1:]))
    ndim <= 1 and ends 'weight'                          1 + 0.1 * n   (norm gain)
    ndim <= 1 otherwise (bias, logvar, ...)              0.02 * n
with n = rng.standard_normal(shape, float32), float32 arithmetic throughout.
Fixed buffers (SCHEDULE, EMA decay, LPIPS scaling, scale_factor) are not random;
`is_fixed(key)` tells them apart and `make_state` leaves them out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
)
FIXED = (*SCHEDULE, "scale_factor", "model_ema.decay", "model_ema.num_updates")
FIXED_SUFFIX = ("scaling_layer.shift", "scaling_layer.scale")
EMB = (".embedding.weight", "embedding.weight", "token_emb.weight", "pos_emb.emb.weight", "label_emb.weight")


def seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def rng(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed(name)))


def is_fixed(key: str) -> bool:
    return key in FIXED or key.endswith(FIXED_SUFFIX)


def make_weight(key: str, shape: Sequence[int]) -> np.ndarray:
    shape = tuple(int(s) for s in shape)
    g = rng(key)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("quantize.embedding.weight"):
        u = g.random(shape, dtype=np.float32)
        return (u * np.float32(3.0) - np.float32(1.5)).astype(np.float32)
    n = np.asarray(g.standard_normal(shape, dtype=np.float32), np.float32)
    if key.endswith(EMB):
        return n * np.float32(0.5)
    if key.endswith("running_mean"):
        return n * np.float32(0.1)
    if key.endswith("running_var"):
        return np.float32(1.0) + np.float32(0.1) * np.abs(n)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        return n * np.float32(1.0 / np.sqrt(fan_in))
    if key.endswith("weight"):
        return np.float32(1.0) + np.float32(0.1) * n
    return np.asarray(n * np.float32(0.02), np.float32)


def make_state(
    manifest: Mapping[str, Sequence[int]], prefixes: Iterable[str] = ("",), strip: str = ""
) -> dict[str, np.ndarray]:
    """All random tensors of a manifest whose key starts with one of `prefixes`.

    The random stream is named by the full key; `strip` is removed from the key
    of the returned dict only.
    """
    prefixes = tuple(prefixes)
    out = {}
    for k, s in manifest.items():
        if k.startswith(prefixes) and not is_fixed(k):
            out[k[len(strip) :] if strip and k.startswith(strip) else k] = make_weight(k, s)
    return out


def normal(name: str, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
    """Standard normal input named e.g. 'input/celeba256/x' (float32)."""
    n = rng(name).standard_normal(tuple(shape), dtype=np.float32)
    return n * np.float32(scale) if scale != 1.0 else n


def uniform(name: str, shape: Sequence[int], lo: float = -1.0, hi: float = 1.0) -> np.ndarray:
    u = rng(name).random(tuple(shape), dtype=np.float32)
    return (u * np.float32(hi - lo) + np.float32(lo)).astype(np.float32)


def integers(name: str, shape: Sequence[int], hi: int) -> np.ndarray:
    return rng(name).integers(0, hi, size=tuple(shape), dtype=np.int64)


def build(recipe: Mapping) -> np.ndarray:
    """Rebuild an input from the recipe dict stored next to a golden."""
    kind = recipe["kind"]
    if kind == "normal":
        return normal(recipe["name"], recipe["shape"], recipe.get("scale", 1.0))
    if kind == "uniform":
        return uniform(recipe["name"], recipe["shape"], recipe["lo"], recipe["hi"])
    if kind == "integers":
        return integers(recipe["name"], recipe["shape"], recipe["hi"])
    if kind == "literal":
        return np.asarray(recipe["value"], dtype=recipe["dtype"]).reshape(recipe["shape"])
    raise ValueError(kind)
