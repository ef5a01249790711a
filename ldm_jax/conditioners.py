"""What the UNet is told about the image: every conditioner turns a batch into one `Cond`.

`context` reaches the UNet through cross-attention, `concat` is joined to its input channels (paper, section 3.3).
"""

from typing import NamedTuple

import flax.linen as nn
import jax

Batch = dict[str, jax.Array]


class Cond(NamedTuple):
    """context [B,L,D] or None; concat [B,h,w,C] or None."""

    context: jax.Array | None = None
    concat: jax.Array | None = None


class Unconditional(nn.Module):
    """Tells nothing."""

    @nn.compact
    def __call__(self, batch: Batch) -> Cond:
        return Cond()
