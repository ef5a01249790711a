"""No condition."""

from ldm_jax.conditions.base import Asked, Batch, Cond, Condition, ConditionNetwork, Encode


def section() -> dict:
    return dict(kind="none", drop_prob=0.0)


class Unconditional(ConditionNetwork):
    """Gives neither a context nor channels."""

    def __call__(self, batch: Batch, encode: Encode) -> Cond:
        return Cond()

    def null(self, batch: Batch) -> Batch:
        raise ValueError("an unconditional model has no condition to leave out")


class NoCondition(Condition):
    kind = "none"
    example = "--num=16"

    def network(self, dtype):
        return Unconditional()

    def shapes(self, frame):
        return {}

    def fields(self, data, frame, train, tokenizer):
        return ()

    def requests(self, asked, frame, tokenizer):
        return [Asked("")]
