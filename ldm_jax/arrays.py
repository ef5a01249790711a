"""The arrays that functions take: JAX's, and NumPy's, as jax.numpy does. For annotations: `Float[Array, "B h w c"]`."""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    from jax import Array
else:
    Array = jax.Array | np.ndarray

__all__ = ["Array"]
