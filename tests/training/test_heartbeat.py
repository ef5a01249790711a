"""A host that dies is named by the others, and these end. Hosts are threads here, and processes in the slow test."""

import json
import re
import threading
import time

import pytest

from ldm_jax.cli import train
from ldm_jax.training import heartbeat
from ldm_jax.training.heartbeat import AWAY, ENDED, FAILED, Heartbeat
from ldm_jax.training.stopping import AGAIN, Alone, Hosts
from tests.training.test_stopping import Store, two_hosts, wait_for

SILENT = 0.6


class Signs(Store):
    """A store that can go away."""

    gone = False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.gone:
            raise ConnectionError
        super().key_value_set(key, value, allow_overwrite)

    def key_value_dir_get(self, key):
        return [(name, value) for name, value in self.values.items() if name.startswith(key)]


@pytest.fixture
def hosts(monkeypatch):
    """Three hosts that give signs of life, their store, and what each says at its end: {host: (words, code)}."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    store, ended = Signs(), {}
    made = [Heartbeat(Hosts(store, i, 3), SILENT, lambda told, code, i=i: ended.setdefault(i, code)) for i in range(3)]
    for heart in made:
        heart.start()
    yield made, store, ended
    for heart in made:
        heart.over.set()


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_host_that_is_silent_is_named_by_the_others(hosts, capsys):
    made, _, ended = hosts
    time.sleep(2 * SILENT)
    assert not ended  # all are heard
    sign = json.loads(made[0].signs[1])
    made[1].over.set()
    until(lambda: ended == {0: AGAIN, 2: AGAIN})
    who = re.escape(f"host 1 ({sign['name']}, process {sign['pid']})")
    assert len(re.findall(rf"^{who} was last heard \d+ s ago\. It has died", capsys.readouterr().out, re.M)) == 2


def test_hosts_without_the_store_name_host_0(hosts, capsys):
    made, store, ended = hosts
    time.sleep(0.1)
    made[0].over.set()
    store.gone = True
    until(lambda: ended == {1: AGAIN, 2: AGAIN})
    said = capsys.readouterr().out
    assert "host 0 (" in said and "does not answer: it was last heard" in said and "host 1" not in said


def test_a_host_that_has_ended_is_not_missed(hosts):
    made, _, ended = hosts
    made[1].end(ENDED)
    time.sleep(3 * SILENT)
    assert not ended


def test_an_outage_of_one_host_ends_the_others_so_that_all_are_started_again(hosts, capsys):
    made, _, ended = hosts
    made[1].end(AWAY)
    until(lambda: ended == {0: AGAIN, 2: AGAIN})
    assert capsys.readouterr().out.count("has ended because it could not reach a bucket") == 2


def test_an_error_that_an_outage_of_another_host_has_caused_is_one(hosts):
    made, _, ended = hosts
    threads = [threading.Thread(target=call) for call in (made[0].failed, made[1].away, made[2].failed)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended == dict.fromkeys(range(3), AGAIN)


def test_the_first_host_keeps_the_store_until_the_others_have_seen_its_outage(hosts):
    made, _, ended = hosts
    made[0].away()
    assert ended == dict.fromkeys(range(3), AGAIN)


def test_an_error_of_one_host_ends_the_others(hosts, capsys):
    made, _, ended = hosts
    made[1].failed()  # returns when it knows that no other host is lost
    assert ended.pop(1) == 1
    until(lambda: ended == {0: 1, 2: 1})
    assert "host 1 (" in (said := capsys.readouterr().out) and "has ended with an error" in said


def test_an_error_that_a_lost_host_has_caused_ends_with_its_name(hosts, capsys):
    made, _, ended = hosts
    made[1].over.set()
    for heart in (made[0], made[2]):
        threading.Thread(target=heart.failed, daemon=True).start()
    until(lambda: ended.get(0) == ended.get(2) == AGAIN)
    assert capsys.readouterr().out.count("host 1 (") == 2


def test_an_error_of_all_hosts_is_theirs(hosts):
    made, _, ended = hosts
    threads = [threading.Thread(target=heart.failed) for heart in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not ended
    assert [heart.state for heart in made] == [FAILED] * 3


def test_a_process_that_stood_still_blames_nobody(hosts, monkeypatch):
    """As one that was stopped with Ctrl-Z, or a virtual machine that was moved."""
    _, _, ended = hosts
    later = time.monotonic() + 100
    clock = time.monotonic
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: later + clock())
    time.sleep(2 * SILENT)
    assert not ended


def test_how_a_block_ends_is_told(monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    ends = {None: ENDED, SystemExit(AGAIN): ENDED, Alone(): AWAY, SystemExit(2): FAILED, KeyboardInterrupt: FAILED}
    for error, state in ends.items():
        store, left = Signs(), []
        try:
            with heartbeat.between(Hosts(store, 1, 2), SILENT, lambda told, code, left=left: left.append(code)):
                if error:
                    raise error
        except BaseException as raised:
            assert raised is error or type(raised) is error
        assert json.loads(store.values["ldm_jax/beat/1"])["state"] == state
        assert left == ([AGAIN] if state == AWAY else [])
    with heartbeat.between(None, SILENT, None), heartbeat.between(Hosts(None, 0, 2), 0, None):
        pass  # one host; off


def test_the_time_is_an_option(capsys):
    assert train.parse(["--config=quickstart_ldm:tiny", "--host-timeout=30"])[0].host_timeout == 30
    with pytest.raises(SystemExit):
        train.parse(["--config=quickstart_ldm:tiny", "--host-timeout=2"])
    assert "--host-timeout=2 must be at least 10 seconds, or 0 (off)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 0])
def test_a_killed_process_is_named_within_a_minute(dead, tmp_path):
    hosts = two_hosts(tmp_path, "steps=100000", "slow=0.05", "checkpoint=5", "host_timeout=40")
    wait_for(hosts[0], "step 12/")
    hosts[dead].kill()
    began = time.monotonic()
    out, err = hosts[1 - dead].communicate(timeout=90)
    seconds = time.monotonic() - began
    hosts[dead].communicate()
    assert hosts[1 - dead].returncode and seconds < 60, (hosts[1 - dead].returncode, seconds, err)
    assert re.search(rf"host {dead} \(.*, process {hosts[dead].pid}\)", out), out + err
    if dead:
        assert "was last heard" in out and hosts[0].returncode == AGAIN, out + err
    else:  # JAX has the last word
        assert "the leader is host 0 (" in out and "leader task was preempted/died" in err, out + err
