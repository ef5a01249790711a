"""Before its first step a run compiles all programs that it will need: what fails, or does not fit, does so then."""

import time
from collections.abc import Callable, Sequence

import jax
from jax.stages import Compiled

from ldm_jax import process
from ldm_jax.errors import ConfigError

STEP = "training step"
REMEDIES = {
    STEP: "a smaller --config.batch_size, more parts of it (--config.optim.accumulate), arrays split over more devices "
    "(--config.mesh.fsdp), or --config.dtype=bfloat16",
    "evaluation": "a smaller --config.batch_size, or none (--config.every.evaluate=0)",
    "pictures": "fewer samples (--config.sample.number), or no pictures (--config.every.picture=0)",
    "metrics": "a smaller --config.metrics.batch, or none (--config.every.metrics=0)",
}


class Ahead:
    """The programs of a run, with the seconds that they took and the memory of a device that they are planned to need.

    held: bytes of a device that are taken between steps. limit: bytes that it has, None = not known.
    """

    def __init__(self, held: int, limit: int | None):
        self.held, self.limit = held, limit
        self.seconds: dict[str, float] = {}
        self.peak: int | None = None

    def compile(self, name: str, make: Callable[[], Sequence[Compiled]], more: int = 0) -> Sequence[Compiled]:
        """The programs that `make` compiles for `name`, of REMEDIES. more: bytes that are taken while these run.

        Raises ConfigError when a device has too little memory for them.
        """
        began = time.perf_counter()
        try:
            programs = make()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ConfigError(f"{_not_fit(name)}: {error}\nWhat helps: {REMEDIES[name]}") from error
        self.seconds[name] = time.perf_counter() - began
        added = [size for size in map(process.added_bytes, programs) if size is not None]
        if added:
            self._count(name, self.held + more + max(added))
        return programs

    def _count(self, name: str, needed: int) -> None:
        self.peak = max(self.peak or 0, needed)
        if self.limit is not None and needed > self.limit:
            raise ConfigError(
                f"{_not_fit(name)}: {_gib(needed)} GiB are planned for a device, which has {_gib(self.limit)}. "
                f"What helps: {REMEDIES[name]}"
            )

    def told(self) -> str:
        """compiled: training step 23.1 s, evaluation 4.0 s; planned memory 11.2 GiB of 59.4"""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        if self.peak is None:
            return f"compiled: {parts}"
        limit = "" if self.limit is None else f" of {_gib(self.limit)}"
        return f"compiled: {parts}; planned memory {_gib(self.peak)} GiB{limit}"


def _not_fit(name: str) -> str:
    return f"the {name} {'do' if name in ('pictures', 'metrics') else 'does'} not fit"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"
