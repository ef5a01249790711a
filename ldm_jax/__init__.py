"""Latent diffusion models in JAX and Flax.

`import ldm_jax` imports neither JAX nor anything else that is slow; what is used is imported then.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ldm_jax import errors

if TYPE_CHECKING:
    from ldm_jax.pipeline import Images, Pipeline, SampleRequest, load

__version__ = "0.1.0"
__all__ = ["Images", "Pipeline", "SampleRequest", "__version__", "errors", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("ldm_jax.pipeline"), name)
    raise AttributeError(f"module 'ldm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
