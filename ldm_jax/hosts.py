"""What one host decides for all hosts of a run."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax.errors import UsageError

_BYTES = 2**14  # of an answer


def decided(decide: Callable[[], Any]) -> Any:
    """What `decide` returns on the first host, on every host. It runs there alone. Its value is one that JSON has.

    An error of the first host ends all: it is raised there, and a UsageError with its message is raised on the others.
    """
    if jax.process_count() == 1:
        return decide()
    answer, failed = {}, None
    if jax.process_index() == 0:
        try:
            answer = {"value": decide()}
        except Exception as error:
            answer, failed = {"error": f"{error}"[: _BYTES // 8]}, error
    answer = json.loads(_of_first_host(json.dumps(answer)))
    if failed is not None:
        raise failed
    if "error" in answer:
        raise UsageError(answer["error"])
    return answer["value"]


def _of_first_host(text: str) -> str:
    """The first host's text, ASCII, on every host."""
    line = np.zeros(_BYTES, np.uint8)
    line[: len(text)] = np.frombuffer(text.encode("ascii"), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(line))).rstrip(b"\0").decode("ascii")
