"""The Inception score (Salimans et al., 2016): exp of the mean divergence of a picture's classes from all pictures'.

It takes Inception's unbiased logits, all 1008. Float64, on the host, from log-softmax: saturated logits give no nan.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ldm_jax.errors import UsageError


class InceptionScore(NamedTuple):
    """mean and standard deviation (of the parts themselves) over the parts."""

    mean: float
    std: float


def inception_score(logits: Float[np.ndarray, "N C"], splits: int = 10, seed: int | None = 2020) -> InceptionScore:
    """torch-fidelity's rule: rows are shuffled, then cut into `splits` parts as equal as they can be.

    seed: None leaves the rows in their order. Raises UsageError for fewer rows than parts.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise UsageError(f"{count} images do not make {splits} parts")
    logs = _log_softmax(logits)
    if seed is not None:
        logs = logs[np.random.RandomState(seed).permutation(count)]
    scores = [_score(logs[i * count // splits : (i + 1) * count // splits]) for i in range(splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def inception_score_adm(logits: Float[np.ndarray, "N C"], part: int = 5000) -> float:
    """ADM's rule: consecutive parts of `part` rows, unshuffled; a short last one counts like the others."""
    if not len(logits):
        raise UsageError("no images, no Inception score")
    logs = _log_softmax(logits)
    return float(np.mean([_score(logs[start : start + part]) for start in range(0, len(logs), part)]))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - _log_sum_exp(logits, 1)


def _log_sum_exp(x: np.ndarray, axis: int) -> np.ndarray:
    largest = x.max(axis, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis, keepdims=True))


def _score(logs: np.ndarray) -> float:
    """Of one part, from log-probabilities [N,C]."""
    log_mean = _log_sum_exp(logs, 0) - np.log(len(logs))
    return float(np.exp((np.exp(logs) * (logs - log_mean)).sum(1).mean()))
