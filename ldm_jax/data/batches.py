"""From a source and a transform to batches, by Grain's Dataset API.

Batch k is a pure function of (seed, k): global sample g = k * batch_size + position has its place in the
permutation of its epoch, g // len(source), and its own random numbers, both from (seed, g) alone. So a run
resumes from the step number, and any number of hosts, workers and threads gives the same batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import grain
import numpy as np
from absl import flags, logging

from ldm_jax.data.sources import CorruptExample, Source
from ldm_jax.errors import ConfigError, DataError

Transform = Callable[[dict, np.random.Generator], dict[str, np.ndarray]]

# The first word of a random stream: the same seed must not serve two purposes.
_ORDER, _AUGMENT, _EVALUATE = 0, 1, 2
# No source is endless in int64, and Grain wants a length.
_ENDLESS = 2**62
_MOST_TRIES = 100


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(size)


@dataclass(frozen=True)
class _Shuffled:
    """Global sample g -> index into the source: a fresh permutation every epoch."""

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
    """This host's samples one after another: row j is row j % (B/H) of its part of batch j // (B/H)."""

    source: Source
    transform: Transform
    order: Callable[[int], tuple[int, float | None]]
    stream: int
    seed: int
    batch_size: int
    process_index: int
    process_count: int

    @property
    def rows(self) -> int:
        return self.batch_size // self.process_count

    def __call__(self, j: int) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
        """Returns the example and the (name, reason) of corrupt ones passed over to find it."""
        step, row = divmod(j, self.rows)
        g = step * self.batch_size + self.process_index * self.rows + row
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
        raise RuntimeError(f"{len(skipped)} examples in a row could not be read; the last: "
                           f"{skipped[-1][0]}: {skipped[-1][1]}")


def _stack(rows) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    examples = [example for example, _ in rows]
    for example in examples:
        for key in examples[0].keys() | example.keys():
            shapes = [np.shape(e[key]) if key in e else "missing" for e in (examples[0], example)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"examples of one batch differ in {key!r}: {shapes[0]} and {shapes[1]}")
    batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    return batch, [pair for _, skipped in rows for pair in skipped]


class Batches:
    """Iterator of batches (dict of arrays, this host's rows) that logs corrupt examples; has close().

    Raises RuntimeError once more than 5 % of the examples seen, and at least 20, were corrupt.
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
            raise RuntimeError(f"{self.corrupt} of {self.seen} examples seen were corrupt, more than 5 %: "
                               f"repair or remove them; among them {', '.join(sorted(self._named)[:5])}")
        return batch

    def close(self) -> None:
        """Ends worker processes and threads; afterwards there are no more batches. May be called twice."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        # Grain's iterator complains when it is only collected at the interpreter's exit.
        self._iterator = iter(())


def _check(source: Source, batch_size: int, process_index: int, process_count: int) -> None:
    if len(source) == 0:
        raise DataError("the source is empty: there is nothing to make batches of")
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"the global batch_size {batch_size} must be a positive multiple of the "
                          f"{process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not in 0..{process_count - 1}")


def _iterate(rows: _Rows, start_step: int, end_step: int, workers: int) -> Batches:
    """Batches start_step..end_step-1, made ahead of the consumer in threads or worker processes."""
    dataset = grain.MapDataset.range(start_step * rows.rows, end_step * rows.rows).map(rows)
    dataset = dataset.batch(rows.rows, batch_fn=_stack)
    # Two batches ahead: one being used and one waiting, whatever their size.
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    dataset = dataset.to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers refuse to start otherwise
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return Batches(iter(dataset))


def batches(source: Source, transform: Transform, batch_size: int, *, seed: int, start_step: int = 0,
            process_index: int = 0, process_count: int = 1, workers: int = 0) -> Batches:
    """Training batches start_step, start_step + 1, ... without end.

    batch_size is GLOBAL; host h of H gets rows [h * B/H, (h + 1) * B/H) of it. Every epoch is a fresh
    permutation in which no sample repeats; epochs follow each other without a gap, so a batch may hold the
    end of one and the start of the next, and a source smaller than the batch fills it by repeating.
    A corrupt example is replaced by the next one of the source.
    workers: 0 decodes in two threads of this process, else in that many processes (guard `__main__`).
    """
    _check(source, batch_size, process_index, process_count)
    rows = _Rows(source, transform, _Shuffled(len(source), seed), _AUGMENT, seed, batch_size, process_index,
                 process_count)
    return _iterate(rows, start_step, _ENDLESS // batch_size, workers)


def eval_batches(source: Source, transform: Transform, batch_size: int, limit: int | None = None, *,
                 seed: int = 0, process_index: int = 0, process_count: int = 1, workers: int = 0) -> Batches:
    """One pass over the source, or over `limit` examples spread evenly over it, in a fixed order.

    No example is dropped: the last batch is filled up from the start, and "weight" [B] float32 is 1 for a
    true example and 0 for filling. Random numbers are the same in every pass, and others than in training.
    The rest is as in `batches`.
    """
    _check(source, batch_size, process_index, process_count)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, but at least one example must be evaluated")
    count = len(source) if limit is None else min(limit, len(source))
    rows = _Rows(source, transform, _OnePass(len(source), count), _EVALUATE, seed, batch_size,
                 process_index, process_count)
    return _iterate(rows, 0, -(-count // batch_size), workers)
