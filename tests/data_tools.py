"""Batches and captions, as tests look at them."""

import numpy as np

from ldm_jax.data import batches
from ldm_jax.data.tokenizers import TextTokenizer


def take(iterator: batches.Batches, count: int) -> list[dict[str, np.ndarray]]:
    """The first `count` batches; ends the threads."""
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


def batch_at(source, transform, batch_size: int, step: int, *, seed: int) -> dict[str, np.ndarray]:
    """Training batch `step` alone."""
    return take(batches.batches(source, transform, batch_size, seed=seed, start_step=step), 1)[0]


def words(tokenizer: TextTokenizer, ids: np.ndarray) -> str:
    """The text of ids [L], without special tokens."""
    return tokenizer._tokenizer.decode([int(k) for k in ids], skip_special_tokens=True)
