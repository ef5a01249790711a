"""Programs are compiled in a hurry; shapes and types are checked; the programs of a file are dropped after it."""

import os

import jax
import jaxtyping
import pytest

from tests import fast, typecheck

os.environ["XLA_FLAGS"] = fast.flags(os.environ.get("XLA_FLAGS", ""))  # also of child processes

CHECKED = (
    "ldm_jax.models",
    "ldm_jax.losses",
    "ldm_jax.diffusion.schedule",
    "ldm_jax.diffusion.timetable",
    "ldm_jax.diffusion.guidance",
    "ldm_jax.diffusion.patches",
    "ldm_jax.ldm",
    "ldm_jax.latent_classifier",
    "ldm_jax.generate",
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
