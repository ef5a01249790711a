"""What the first host decides holds on all hosts: values, and errors. Two hosts are played one after the other."""

import jax
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
