"""Shapes and types are checked at run time in tests."""

import jaxtyping

from tests import typecheck

jaxtyping.install_import_hook(["ldm_jax.models", "ldm_jax.losses", "ldm_jax.diffusion"], f"{typecheck.__name__}.check")
