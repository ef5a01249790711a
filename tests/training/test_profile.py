"""A profiler's trace of some steps."""

import jax.numpy as jnp
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.training import profile


def test_steps_are_two_numbers():
    assert profile.steps("3:5") == (3, 5) and profile.steps("7:7") == (7, 7)


@pytest.mark.parametrize("text", ["3", "5:3", "0:2", "a:b", "1:2:3", ":", "-1:2"])
def test_others_are_refused_with_an_example(text):
    with pytest.raises(UsageError, match=f"--profile={text} must be FIRST:LAST.*--profile=20:22"):
        profile.steps(text)


def test_the_trace_holds_the_steps_and_says_how_to_open_it(tmp_path):
    told = []
    found = profile.Profile((2, 3), tmp_path, lambda text, **_: told.append(text))
    value = jnp.zeros(2)
    for step in range(1, 5):
        found.before(step, value)
        assert found.active == (step in (2, 3))
        value = value + 1
        found.after(step, value)
    found.close()
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    assert list(tmp_path.glob("profile/plugins/profile/*/perfetto_trace.json.gz"))
    assert len(told) == 1 and "steps 2 to 3" in told[0] and str(tmp_path / "profile") in told[0]
    assert "xprof" in told[0] and "perfetto" in told[0]


def test_a_run_that_ends_before_says_so(tmp_path):
    told = []
    found = profile.Profile((20, 22), tmp_path, lambda text, **_: told.append(text))
    found.before(4, None)
    found.after(4, None)
    found.close()
    assert told == ["--profile=20:22: this run had no such step; nothing is written"] and not list(tmp_path.iterdir())


def test_a_run_that_ends_in_between_keeps_what_there_is(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(profile.jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: calls.append("stop"))
    found = profile.Profile((2, 9), tmp_path, lambda text, **_: calls.append(text.split(" in ")[0]))
    found.before(2, 0)
    for step in (2, 3, 4, 5):
        found.after(step, 0)
    found.close()
    assert calls == ["start", "stop", "profile of steps 2 to 5"]
