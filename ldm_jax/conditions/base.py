"""What all kinds of condition have in common: `Cond`, which the UNet gets, and the base class `Condition`.

A kind is one file of this folder with one subclass of `Condition`. The file holds everything about it: its section of
a recipe, the network that reads it, the fields of a training batch, and how a user's request becomes such fields.
`context` reaches the UNet through cross-attention, `concat` is joined to its input channels (paper, section 3.3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.data.fields import Field
from ldm_jax.data.sources import Source
from ldm_jax.errors import ConfigError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Batch = dict[str, jax.Array]
Encode = Callable[[jax.Array], jax.Array]
Shapes = dict[str, tuple[tuple[int, ...], type]]


class Cond(NamedTuple):
    """context [B,L,D] or None (in patches also [B,P,L,D], see editing.py); concat [B,h,w,C] or None."""

    context: jax.Array | None = None
    concat: jax.Array | None = None


class ConditionNetwork(nn.Module):
    """The network of a kind: a batch in, one Cond out. Parameters are named after the original's `cond_stage_model`."""

    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        """encode: image [B,H,W,C] -> scaled latent [B,h,w,c], the LDM's own."""
        raise NotImplementedError

    def null(self, batch: Batch) -> Batch:
        """The fields of the batch that it reads, with the values that mean "no condition" (classifier-free guidance).

        ValueError when the model has no such values.
        """
        raise NotImplementedError

    def part_nulls(self, batch: Batch) -> tuple[Batch, ...]:
        """`null` of each of the conditions that are joined here, in their order; else of this one alone."""
        return (self.null(batch),)


def drop(network: ConditionNetwork, batch: Batch, dropped: jax.Array) -> Batch:
    """The batch with the condition's fields null where `dropped` [B] bool."""
    return _replaced(batch, network.null(batch), dropped)


def drop_parts(network: ConditionNetwork, batch: Batch, u: jax.Array, together: float, each: float) -> Batch:
    """The batch with the fields null of all joined conditions in the share `together` of the samples, and of each one
    alone in the share `each`. u [B]: uniform in [0, 1)."""
    for i, null in enumerate(network.part_nulls(batch)):
        low = together + i * each
        batch = _replaced(batch, null, (u < together) | ((low <= u) & (u < low + each)))
    return batch


def _replaced(batch: Batch, nulls: Batch, dropped: jax.Array) -> Batch:
    """The batch with the fields `nulls` where `dropped` [B] bool."""

    def choose(null: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(dropped.reshape(-1, *(1,) * (value.ndim - 1)), null, value)

    return batch | {name: choose(null, batch[name]) for name, null in nulls.items()}


@dataclass(frozen=True)
class Frame:
    """Sizes that conditions depend on: (H, W) of the image, (h, w) of its latent; h and w divide by `divisor`."""

    image: tuple[int, int]
    latent: tuple[int, int]
    divisor: int

    @property
    def f(self) -> int:
        """Pixels of the image to one of the latent."""
        return self.image[0] // self.latent[0]


@dataclass(frozen=True)
class Asked:
    """One condition that a user asks for. name: for file names; fields: of a batch, without its first axis.

    size: (H, W) of the image to make, a multiple of what the networks take, or None for the model's own.
    finish: the last change of the image that was made, uint8 [H,W,C] -> the same; for instance cutting it to its size.
    """

    name: str
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    finish: Callable[[np.ndarray], np.ndarray] = lambda image: image


class Option(NamedTuple):
    """What a user can ask for: a keyword of `Pipeline.sample`, and an option of sample.py."""

    name: str
    help: str
    type: Callable[[str], Any] = str  # of the text on a command line
    repeats: bool = False  # may be given several times on a command line


class Condition:
    """A kind of condition, of one model: `section` is its config.conditioner.

    A subclass sets `kind` and `options`, and has the methods below. A user must give at least one option of each group.
    `KINDS` holds all subclasses by their kind.
    """

    kind: ClassVar[str]
    options: ClassVar[tuple[tuple[Option, ...], ...]] = ()
    extra_options: ClassVar[tuple[Option, ...]] = ()  # not required
    example: ClassVar[str] = ""  # options of sample.py, for an example of a command
    has_context: ClassVar[bool] = False  # the UNet needs cross-attention

    def __init__(self, section: "ConfigDict"):
        self.section = section

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        KINDS[cls.kind] = cls

    def parts(self) -> dict[str, "Condition"]:
        """{kind: condition} of the conditions that this one joins; else itself alone."""
        return {self.kind: self}

    def groups(self) -> tuple[tuple[Option, ...], ...]:
        """The options of this model in groups; of each group one must be given."""
        return self.options

    def extras(self) -> tuple[Option, ...]:
        """Further options of this model, which are not required."""
        return self.extra_options

    def context_dim(self) -> int | None:
        """Width of the context, or None. ConfigError where parts have different ones."""
        widths = {name: part.section.dim for name, part in self.parts().items() if "dim" in part.section}
        if len(set(widths.values())) > 1:
            raise ConfigError(f"the parts of config.conditioner need one width of the context, not dim={widths}")
        return next(iter(widths.values()), None)

    def network(self, dtype: jnp.dtype) -> ConditionNetwork:
        """The network that reads the fields. dtype: compute type."""
        raise NotImplementedError

    def shapes(self, frame: Frame) -> Shapes:
        """{field: (shape of one example, type)} of what `network` reads of a batch."""
        raise NotImplementedError

    def fields(self, data: "ConfigDict", frame: Frame, train: bool, tokenizer: Path | None) -> tuple[Field, ...]:
        """Makers of these fields from a training example. data: config.data; tokenizer: the run's own folder."""
        raise NotImplementedError

    def requests(self, asked: Mapping[str, Any], frame: Frame, tokenizer: Path | None) -> list[Asked]:
        """The conditions that a user asks for. asked: {option: value}; RequestError for a value that is wrong."""
        raise NotImplementedError

    def source(self, images: Source) -> Source:
        """The images that this condition can be learnt from."""
        return images


KINDS: dict[str, type[Condition]] = {}
