"""Before its first step a run compiles all programs that it will need: what fails, or does not fit, does so then."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import jax
from jax.stages import Compiled

from ldm_jax import process
from ldm_jax.errors import ConfigError

PATIENCE = 5.0  # seconds after which the first part is told of, though it is not compiled yet


@dataclass(frozen=True)
class Part:
    """The programs of one kind of work of a run.

    name: for messages. compile: makes the programs. remedy: what helps where a device has too little memory for them.
    more: bytes of a device that are taken while they run, besides what is always held.
    """

    name: str
    compile: Callable[[], Sequence[Compiled]]
    remedy: str
    more: int = 0


def compile_all(
    parts: Sequence[Part], held: int, limit: int | None, say: Callable[..., object]
) -> dict[str, Sequence[Compiled]]:
    """The programs of each part, by its name. Says when a part is done, and then the memory that is planned for all.

    held: bytes of a device that the run always holds. limit: bytes that it has, None = not known. say: as print. Raises
    ConfigError at the first part for which a device has too little memory.
    """
    made: dict[str, Sequence[Compiled]] = {}
    memory = _Memory(held, limit)
    for part in parts:
        began = time.perf_counter()
        with _notice(part, say) if part is parts[0] else nullcontext():
            made[part.name] = _compile(part)
        say(f"compiled: {part.name} {time.perf_counter() - began:.1f} s", flush=True)
        memory.add(part, made[part.name])
    if parts:
        say(memory.told(), flush=True)
    return made


def _compile(part: Part) -> Sequence[Compiled]:
    try:
        return part.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _too_little(part, str(error)) from error


class _Memory:
    """What a device is planned to need at most: what it always holds, and what the largest program adds."""

    def __init__(self, held: int, limit: int | None):
        self.held, self.limit, self.needed = held, limit, held
        self.silent: list[str] = []  # parts with programs of which the memory is not known

    def add(self, part: Part, programs: Sequence[Compiled]) -> None:
        """Raises ConfigError when the part needs more than there is. One that has a silent program is not compared."""
        plans = [process.planned(program) for program in programs]
        known = [plan.added for plan in plans if plan is not None]
        if len(known) < len(plans):
            self.silent.append(part.name)
            return
        needed = self.held + part.more + max(known, default=0)
        if self.limit is not None and needed > self.limit:
            raise _too_little(part, f"{_gib(needed)} GiB are planned for a device, which has {_gib(self.limit)}.")
        self.needed = max(self.needed, needed)

    def told(self) -> str:
        """planned memory 11.2 GiB of 59.4"""
        if self.silent:
            return f"planned memory not known: the compiler does not say it of {', '.join(self.silent)}"
        return f"planned memory {_gib(self.needed)} GiB" + ("" if self.limit is None else f" of {_gib(self.limit)}")


def _too_little(part: Part, told: str) -> ConfigError:
    return ConfigError(f"a device has too little memory for the {part.name}: {told}\nWhat helps: {part.remedy}")


@contextmanager
def _notice(part: Part, say: Callable[..., object]) -> Iterator[None]:
    """Says that the part is being compiled, if that takes long."""
    timer = threading.Timer(PATIENCE, say, [f"compiling the {part.name} ..."], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"
