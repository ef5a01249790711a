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


# The files that take longest come first, so that no process is left alone with one of them at the end.
LONGEST = ("test_loop.py", "test_configs.py", "test_unet.py", "test_convert.py", "test_pipeline.py", "test_lpips.py")


def pytest_collection_modifyitems(items):
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(autouse=True)
def _own_precision():
    """A command that runs in this process sets JAX's precision of products; the next test begins with the default."""
    yield
    jax.config.update("jax_default_matmul_precision", None)


@pytest.fixture(autouse=True, scope="module")
def _drop_programs():
    """Compiled programs of all files together would take gigabytes."""
    yield
    jax.clear_caches()
