"""Shapes and types are checked at run time in tests; programs of a test file are dropped after it."""

import jax
import jaxtyping
import pytest

from tests import typecheck

CHECKED = (
    "ldm_jax.models",
    "ldm_jax.losses",
    "ldm_jax.diffusion.schedule",
    "ldm_jax.diffusion.timetable",
    "ldm_jax.diffusion.guidance",
    "ldm_jax.diffusion.patches",
    "ldm_jax.evaluation.layers",
    "ldm_jax.evaluation.inception",
    "ldm_jax.evaluation.dinov2",
    "ldm_jax.evaluation.vgg",
    "ldm_jax.evaluation.efficientnet_lite",
)
jaxtyping.install_import_hook(CHECKED, f"{typecheck.__name__}.check")


@pytest.fixture(autouse=True, scope="module")
def _drop_programs():
    """Compiled programs of all files together would take gigabytes."""
    yield
    jax.clear_caches()
