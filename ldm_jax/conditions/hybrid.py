"""Several conditions at once, for example a class and a semantic map."""

from collections import Counter
from functools import reduce

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.conditions.base import KINDS, Asked, Batch, Cond, Condition, ConditionNetwork, Encode, Frame
from ldm_jax.errors import ConfigError, RequestError


def section(*parts: dict, drop_prob: float = 0.0, drop_each: float = 0.0) -> dict:
    """Several sections at once. drop_prob: the share of the samples without all of them; drop_each: without one alone,
    for each of them, which guidance with a scale for each needs (Brooks et al. 2023, arXiv 2211.09800, 3.2.1: 0.05 and
    0.05). A class needs its null then: class_label.section(..., drop_prob) makes it."""
    sections = {part["kind"]: {k: v for k, v in part.items() if k != "drop_prob"} for part in parts}
    if len(sections) != len(parts):
        raise ValueError(f"a hybrid of {', '.join(part['kind'] for part in parts)}: each kind once")
    return dict(kind="hybrid", parts=sections, drop_prob=drop_prob, drop_each=drop_each)


class HybridNetwork(ConditionNetwork):
    """Each part its own network: contexts follow each other as tokens [B,L1+L2,D], spatial parts as channels.
    `null` leaves out all of them together. The fields that they read must be different ones."""

    parts: dict[str, nn.Module]

    @nn.compact
    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        conds = [part(batch, encode) for part in self.parts.values()]
        contexts = [cond.context for cond in conds if cond.context is not None]
        concats = [cond.concat for cond in conds if cond.concat is not None]
        return Cond(
            context=jnp.concatenate(contexts, axis=1) if contexts else None,
            concat=jnp.concatenate(concats, axis=-1) if concats else None,
        )

    def null(self, batch: Batch) -> Batch:
        return reduce(dict.__or__, self.part_nulls(batch))

    def part_nulls(self, batch: Batch) -> tuple[Batch, ...]:
        return tuple(part.null(batch) for part in self.parts.values())


class Hybrid(Condition):
    kind = "hybrid"

    def parts(self):
        from ml_collections import ConfigDict

        c = self.section
        unknown = [name for name in c.parts if name not in KINDS or name in ("none", "hybrid")]
        if unknown:
            raise ConfigError(f"config.conditioner.parts has {unknown[0]!r}, no kind that can be joined with others")
        dropped = c.drop_prob or c.get("drop_each", 0.0)
        return {
            name: KINDS[name](ConfigDict({**part.to_dict(), "drop_prob": dropped}))
            for name, part in sorted(c.parts.items())
        }

    def groups(self):
        return tuple(group for part in self.parts().values() for group in part.groups())

    def extras(self):
        return tuple(option for part in self.parts().values() for option in part.extras())

    def network(self, dtype):
        parts = self.parts()
        if len(parts) < 2:
            raise ConfigError(f"config.conditioner.parts has {list(parts)}: a hybrid has two parts or more")
        each, together = self.section.get("drop_each", 0.0), self.section.drop_prob
        if each < 0 or together + len(parts) * each > 1:
            raise ConfigError(
                f"config.conditioner.drop_each={each} for each of {len(parts)} parts, and drop_prob={together}, must "
                "be shares of the samples, 1 at most in sum"
            )
        self.context_dim()  # checks that the parts have one
        frame = Frame((8, 8), (8, 8), 1)
        read = Counter(name for part in parts.values() for name in part.shapes(frame))
        shared = [name for name, times in read.items() if times > 1]
        if shared:
            raise ConfigError(f"config.conditioner.parts={list(parts)}: two of them read {shared[0]!r} of a batch")
        return HybridNetwork({name: part.network(dtype) for name, part in parts.items()})

    def shapes(self, frame):
        return {name: shape for part in self.parts().values() for name, shape in part.shapes(frame).items()}

    def fields(self, data, frame, train, tokenizer):
        return tuple(made for part in self.parts().values() for made in part.fields(data, frame, train, tokenizer))

    def requests(self, asked, frame, tokenizer):
        return reduce(joined, [part.requests(asked, frame, tokenizer) for part in self.parts().values()])

    def source(self, images):
        for part in self.parts().values():
            images = part.source(images)
        return images


def joined(first: list[Asked], second: list[Asked]) -> list[Asked]:
    """Every condition of the first list with every one of the second. RequestError for different sizes."""
    return [_both(one, other) for one in first for other in second]


def _both(one: Asked, other: Asked) -> Asked:
    if one.size and other.size and one.size != other.size:
        (h, w), (height, width) = one.size, other.size
        raise RequestError(f"{one.name} is {h}x{w}, {other.name} {height}x{width} pixels: they must be of one size")
    name = " ".join(filter(None, (one.name, other.name)))
    sized = one if one.size else other
    return Asked(name, one.fields | other.fields, sized.size, sized.finish)
