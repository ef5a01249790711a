"""Process-wide JAX settings that a script makes once, before the first computation."""

import os
from pathlib import Path

import jax


def setup(require_accelerator: bool = False) -> None:
    """Persistent compilation cache.

    The cache is ~/.cache/ldm_jax/xla, or JAX_COMPILATION_CACHE_DIR. Raises RuntimeError without an accelerator
    if one is required (a broken CUDA plugin makes JAX fall back to the CPU with a warning that is easily missed).
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "ldm_jax" / "xla"))
    if require_accelerator and jax.default_backend() == "cpu":
        raise RuntimeError("JAX finds only the CPU. Is the jax[cuda12] or jax[tpu] plugin installed and working?")
