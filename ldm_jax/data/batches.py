"""Makes batches of a source's examples, with Grain's Dataset API.

Batch k is a pure function of (seed, k). It holds the global samples g = k * batch_size + row. Which example sample g is
(by the permutation of epoch g // len(source)) and its random numbers depend only on (seed, g). So a run can resume from
its step number, and the batches do not depend on the number of hosts, workers and threads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import grain
import numpy as np
from absl import logging

from ldm_jax.data.sources import CorruptExample, Source
from ldm_jax.data.workers import Group, plan, prefetch
from ldm_jax.data.workers import cores as available_cores
from ldm_jax.errors import ConfigError, DataError

Transform = Callable[[dict, np.random.Generator], dict[str, np.ndarray]]

# The first word of the seed of a random stream: each purpose has its own stream.
_ORDER, _AUGMENT, _EVALUATE = 0, 1, 2
_ENDLESS = 2**62  # samples; Grain needs a length
_MOST_TRIES = 100


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(size)


@dataclass(frozen=True)
class _Shuffled:
    """Global sample g -> index into the source; a new permutation in each epoch."""

    size: int
    seed: int

    def __call__(self, g: int) -> tuple[int, None]:
        epoch, place = divmod(g, self.size)
        return int(_permutation(self.size, self.seed, epoch)[place]), None


@dataclass(frozen=True)
class _OnePass:
    """Global sample g -> (index, weight): `count` indices spread evenly over the source, then padding."""

    size: int
    count: int

    def __call__(self, g: int) -> tuple[int, float]:
        return (g % self.count) * self.size // self.count, float(g < self.count)


@dataclass(frozen=True)
class _Rows:
    """This host's samples in order: sample j is that of row own[j % len(own)] of batch j // len(own)."""

    source: Source
    transform: Transform
    order: Callable[[int], tuple[int, float | None]]
    stream: int
    seed: int
    batch_size: int
    own: Sequence[int]

    @property
    def rows(self) -> int:
        return len(self.own)

    def __call__(self, j: int) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
        """Returns the example, and (name, reason) of each corrupt example that was skipped before it."""
        step, row = divmod(j, self.rows)
        g = step * self.batch_size + int(self.own[row])
        index, weight = self.order(g)
        rng = np.random.default_rng([self.stream, self.seed, g])
        skipped = []
        for k in range(min(len(self.source), _MOST_TRIES)):
            try:
                example = self.transform(self.source[(index + k) % len(self.source)], rng)
            except CorruptExample as error:
                skipped.append((error.name, error.reason))
                continue
            if weight is not None:
                example["weight"] = np.float32(weight)
            return example, skipped
        raise DataError(
            f"{len(skipped)} examples in a row could not be read; the last: {skipped[-1][0]}: {skipped[-1][1]}. Repair "
            "or remove them, then the same command goes on"
        )


def _stack(rows) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    examples = [example for example, _ in rows]
    for example in examples:
        for key in examples[0].keys() | example.keys():
            shapes = [np.shape(e[key]) if key in e else "missing" for e in (examples[0], example)]
            if shapes[0] != shapes[1]:
                raise DataError(
                    f"examples of one batch differ in {key!r}: {shapes[0]} and {shapes[1]}. All examples of a data set "
                    f"must have it in the same shape: mend the metadata"
                )
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    return batch, [pair for _, skipped in rows for pair in skipped]


class Batches:
    """Iterator of batches: dicts of arrays with this host's rows. It logs corrupt examples, and it has close().

    Raises DataError when at least 20 examples, and more than 5 % of those read, were corrupt.
    """

    def __init__(self, iterator: Iterator):
        self._iterator = iterator
        self._named = set()
        self.seen = 0
        self.corrupt = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch, skipped = next(self._iterator)
        self.seen += len(next(iter(batch.values()))) + len(skipped)
        self.corrupt += len(skipped)
        for name, reason in skipped:
            if name not in self._named:
                self._named.add(name)
                logging.warning("corrupt example %s, the next one takes its place: %s", name, reason)
        if self.corrupt >= 20 and self.corrupt > 0.05 * self.seen:
            raise DataError(
                f"{self.corrupt} of {self.seen} examples seen were corrupt, more than 5 %: "
                f"repair or remove them; among them {', '.join(sorted(self._named)[:5])}"
            )
        return batch

    def close(self) -> None:
        """Ends worker processes and threads. Then there are no more batches. May be called more than once."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        # Grain's iterator prints an error if it still exists at the interpreter's exit.
        self._iterator = iter(())


def _own_rows(
    source: Source, batch_size: int, process_index: int, process_count: int, own: Sequence[int] | None
) -> Sequence[int]:
    """The rows of each batch that this host makes."""
    if len(source) == 0:
        raise DataError("the source is empty: there is nothing to make batches of")
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"the global batch_size {batch_size} must be a positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}")
    each = batch_size // process_count
    return range(process_index * each, (process_index + 1) * each) if own is None else own


def _iterate(rows: _Rows, start_step: int, end_step: int, workers: int, cores: int | None) -> Batches:
    """Batches start_step..end_step-1. Threads or worker processes make them before they are needed."""
    workers, threads = plan(workers, cores or available_cores(), rows.source.light)
    batch = Group(rows, _stack, rows.rows, end_step * rows.rows, threads)
    dataset = grain.MapDataset.range(start_step, end_step).map(batch)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    return Batches(iter(prefetch(dataset, workers)))


def batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    own: Sequence[int] | None = None,
    workers: int = 0,
    cores: int | None = None,
) -> Batches:
    """Training batches start_step, start_step + 1, ... without end.

    batch_size is global: of H hosts, host h gets the rows [h * B/H, (h + 1) * B/H) of a batch of B rows, or the rows
    `own`. In each epoch,
    each example comes once, in a new order. Epochs follow each other without a gap: a batch may hold the end of one and
    the start of the next, and a source smaller than the batch comes several times in it. A corrupt example is replaced
    by the next one of the source.
    workers: number of processes that decode images; 0: threads of this process; -1: as many as suit the cores.
    cores: for this process; None: those of the machine, or those that it was given.
    """
    own = _own_rows(source, batch_size, process_index, process_count, own)
    rows = _Rows(source, transform, _Shuffled(len(source), seed), _AUGMENT, seed, batch_size, own)
    return _iterate(rows, start_step, _ENDLESS // batch_size, workers, cores)


def eval_batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    limit: int | None = None,
    *,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    own: Sequence[int] | None = None,
    workers: int = 0,
    cores: int | None = None,
) -> Batches:
    """One pass over the source in a fixed order; with `limit`, over so many examples spread evenly over the source.

    No example is dropped: the last batch is filled with examples from the start. "weight" [B] float32 is 0 for these,
    and 1 for all others. Random numbers are the same in each pass, and different from those of training. The other
    arguments are those of `batches`.
    """
    own = _own_rows(source, batch_size, process_index, process_count, own)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, but at least one example must be evaluated")
    count = len(source) if limit is None else min(limit, len(source))
    rows = _Rows(source, transform, _OnePass(len(source), count), _EVALUATE, seed, batch_size, own)
    return _iterate(rows, 0, -(-count // batch_size), workers, cores)
