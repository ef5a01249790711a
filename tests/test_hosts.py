"""What the first host decides holds on all hosts: values, and errors. Two hosts are played one after the other."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from ldm_jax import hosts
from ldm_jax.errors import ConfigError, UsageError


def on_two_hosts(monkeypatch, decide):
    """What each of two hosts gets, or its error. The second one gets the bytes that the first one sent."""
    sent, got = [], []

    def broadcast(line):
        sent.append(line)
        return sent[0]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        try:
            got.append(hosts.decided(decide if index == 0 else None))
        except Exception as error:
            got.append(error)
    return got


def gathered(monkeypatch, *facts):
    """What each host's check_equal raises, or None. All hosts get the bytes that each has sent."""
    monkeypatch.setattr(jax, "process_count", lambda: len(facts))
    sent = []

    def gather(line):
        sent.append(line)
        raise InterruptedError

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    for one in facts:
        with pytest.raises(InterruptedError):
            hosts.check_equal(one)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda line: np.stack(sent))
    raised = []
    for one in facts:
        try:
            raised.append(hosts.check_equal(one))
        except ConfigError as error:
            raised.append(str(error))
    return raised


def test_the_host_that_differs_is_named(monkeypatch):
    hosts.check_equal({"anything": 1})  # one host
    facts = {"config.seed": 0, "jax": "0.10.2", "long": list(range(500))}
    assert gathered(monkeypatch, facts, facts, facts) == [None] * 3
    first, *others = gathered(monkeypatch, facts, facts, facts | {"config.seed": 1, "more": True})
    assert others == [first, first]
    assert first.count("host 2 (") == 2 and "host 1" not in first
    assert "config.seed is 1, on host 0 0" in first and "more is True, on host 0 None" in first


def test_processes_of_one_machine_are_counted(monkeypatch):
    assert hosts.on_this_machine() == 1
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda own: np.stack([own, own + 1, own]))
    assert hosts.on_this_machine() == 2


def fails(error):
    def decide():
        raise error

    return decide


@pytest.mark.parametrize("value", [None, 7, "größer", [1, {"a": "b"}]])
def test_a_value(monkeypatch, value):
    assert hosts.decided(lambda: value) == value  # one host
    assert on_two_hosts(monkeypatch, lambda: value) == [value, value]


@pytest.mark.parametrize("error", [ConfigError("of größe"), OSError("x" * 10_000)])
def test_an_error_ends_all(monkeypatch, error):
    with pytest.raises(type(error)):
        hosts.decided(fails(error))
    first, second = on_two_hosts(monkeypatch, fails(error))
    assert first is error
    assert type(second) is UsageError and len(str(second)) > 5 and str(error).startswith(str(second))
