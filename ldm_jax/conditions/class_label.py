"""Classes: one learned vector for each (paper, section 4.1 and table 12)."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditions.base import Asked, Batch, Cond, Condition, ConditionNetwork, Encode, Option
from ldm_jax.data.fields import Field, Placed
from ldm_jax.errors import ConfigError, DataError, RequestError


def section(n_classes: int, dim: int, drop_prob: float = 0.0, embedding_std: float = 1.0) -> dict:
    """A learned vector per class, at first normal with this standard deviation; with dropping, one more for "any
    class"."""
    return dict(
        kind="class",
        n_classes=n_classes,
        dim=dim,
        null_class=drop_prob > 0,
        embedding_std=embedding_std,
        drop_prob=drop_prob,
    )


class ClassEmbedder(ConditionNetwork):
    """batch["label"] [B] int -> one token [B,1,embed_dim]. With `null_class` a further row, the last, means "any"."""

    n_classes: int
    embed_dim: int
    null_class: bool = False
    embedding_std: float = 1.0

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        rows = self.n_classes + self.null_class
        init = nn.initializers.normal(self.embedding_std)
        table = nn.Embed(rows, self.embed_dim, embedding_init=init, name="embedding")
        return Cond(context=table(batch["label"])[:, None])

    def null(self, batch: Batch) -> Batch:
        if not self.null_class:
            raise ValueError(
                f"this class table has {self.n_classes} rows and none for 'no class' (config.conditioner.null_class)"
            )
        return {"label": jnp.full_like(batch["label"], self.n_classes)}


@dataclass(frozen=True)
class Label(Field):
    """ "label" int32, the class. DataError for a class that the model does not have."""

    n_classes: int | None = None
    reads_image = False

    def __call__(self, placed: Placed, rng: np.random.Generator) -> dict[str, np.ndarray]:
        label = placed.get("label")
        if self.n_classes is not None and not 0 <= label < self.n_classes:
            raise DataError(
                f"example {placed.example.get('name', '')} has class {label}; the model has the classes "
                f"0..{self.n_classes - 1} (n_classes={self.n_classes}). Mend the label, or train a new model with "
                "more classes"
            )
        return {"label": np.int32(label)}


def requests(labels: int | Sequence[int], n_classes: int) -> list[Asked]:
    """RequestError for a class that the model does not have."""
    numbers = [labels] if isinstance(labels, Integral) else list(labels)
    for number in numbers:
        if not isinstance(number, Integral) or not 0 <= number < n_classes:
            raise RequestError(f"label={number!r}: the model has the classes 0..{n_classes - 1}")
    return [Asked(f"class {n}", {"label": np.int32(n)}) for n in numbers]


class ClassLabel(Condition):
    kind = "class"
    example = "--label=0"
    options = ((Option("label", "class number; may be given again for more", int, repeats=True),),)
    has_context = True

    def network(self, dtype):
        c = self.section
        if c.drop_prob and not c.null_class:
            raise ConfigError(f"config.conditioner.drop_prob={c.drop_prob} needs config.conditioner.null_class=True")
        return ClassEmbedder(c.n_classes, c.dim, c.null_class, c.get("embedding_std", 1.0))

    def shapes(self, frame):
        return {"label": ((), np.int32)}

    def fields(self, data, frame, train, tokenizer):
        return (Label(self.section.n_classes),)

    def requests(self, asked, frame, tokenizer):
        return requests(asked["label"], self.section.n_classes)

    def source(self, images):
        if len(images.class_names) > self.section.n_classes:
            raise ConfigError(
                f"the images have {len(images.class_names)} classes, more than config.conditioner.n_classes="
                f"{self.section.n_classes}"
            )
        return images
