"""What one host decides for all hosts of a run, and what must be equal on all."""

import json
import socket
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax.errors import ConfigError, Outage, UsageError

_BYTES = 2**14  # of an answer


def decided(decide: Callable[[], Any]) -> Any:
    """What `decide` returns on the first host, on every host. It runs there alone. Its value is one that JSON has.

    An error of the first host ends all: it is raised there, and a UsageError with its message is raised on the others;
    an Outage where it is one.
    """
    if jax.process_count() == 1:
        return decide()
    answer, failed = {}, None
    if jax.process_index() == 0:
        try:
            answer = {"value": decide()}
        except Exception as error:
            answer, failed = {"error": f"{error}"[: _BYTES // 8], "passes": isinstance(error, Outage)}, error
    answer = json.loads(_of_first_host(json.dumps(answer)))
    if failed is not None:
        raise failed
    if "error" in answer:
        raise (Outage if answer["passes"] else UsageError)(answer["error"])
    return answer["value"]


def _of_first_host(text: str) -> str:
    """The first host's text, ASCII, on every host."""
    line = np.zeros(_BYTES, np.uint8)
    line[: len(text)] = np.frombuffer(text.encode("ascii"), np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(line))).rstrip(b"\0").decode("ascii")


def on_this_machine() -> int:
    """How many processes of the run are on the machine of this one. All hosts call it."""
    if jax.process_count() == 1:
        return 1
    own = np.uint32(zlib.crc32(socket.gethostname().encode()))
    return int(np.sum(multihost_utils.process_allgather(own) == own))


def check_equal(facts: Mapping[str, Any]) -> None:
    """ConfigError, on all hosts, that names each host with other facts than the first one, and both values.

    facts: {what: a value that JSON has}. All hosts call it.
    """
    if jax.process_count() == 1:
        return
    sent = zlib.compress(json.dumps({"host": socket.gethostname(), "facts": dict(facts)}).encode())
    line = np.zeros(_BYTES, np.uint8)
    line[: len(sent)] = np.frombuffer(sent, np.uint8)
    every = [json.loads(zlib.decompressobj().decompress(bytes(row))) for row in multihost_utils.process_allgather(line)]
    first, lines = every[0], []
    for number, other in enumerate(every[1:], 1):
        names = sorted(first["facts"].keys() | other["facts"].keys())
        pairs = ((name, first["facts"].get(name), other["facts"].get(name)) for name in names)
        lines += [f"    host {number} ({other['host']}): {n} is {b!r}, on host 0 {a!r}" for n, a, b in pairs if a != b]
    if lines:
        raise ConfigError(f"the hosts of this run are not alike (host 0 is {first['host']}):\n" + "\n".join(lines))
