"""Latent diffusion models in JAX (Rombach et al., 2022, arXiv 2112.10752).

    import ldm_jax
    pipe = ldm_jax.load("runs/text")
    images = pipe.sample(prompt="a red star", num=4)

Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ldm_jax import errors

if TYPE_CHECKING:
    from ldm_jax.errors import ConfigError, Damaged, DataError, Missing, RequestError, UsageError  # noqa: F401
    from ldm_jax.images import Images  # noqa: F401
    from ldm_jax.pipeline import Pipeline, Progress, load  # noqa: F401
    from ldm_jax.provenance import read_settings  # noqa: F401
    from ldm_jax.request import SampleRequest  # noqa: F401

_WHERE = {
    "load": "pipeline", "Pipeline": "pipeline", "Progress": "pipeline", "SampleRequest": "request", "Images": "images",
    "UsageError": "errors", "ConfigError": "errors", "DataError": "errors", "RequestError": "errors",
    "Missing": "errors", "Damaged": "errors", "read_settings": "provenance",
}  # fmt: skip
__version__ = "0.2.0.dev0"
__all__ = [*_WHERE, "__version__", "errors"]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'ldm_jax' has no attribute {name!r}")
    return getattr(import_module(f"ldm_jax.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
