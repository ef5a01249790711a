"""Signs of life of the hosts of a run: one that dies is named by the others, and these end.

Each host writes a sign every BEAT seconds, from a thread that neither compiling nor waiting holds up, and reads those
of the others. A host that runs writes another sign each time. One that has ended well, or with an error, says so. All
is in the key-value store of JAX's distributed service, which is in the process of host 0. When that process dies, JAX
ends the others at once, before any Python could run ("the leader task was preempted/died"): so each host says at the
start which process the leader is. Where the network to it is lost without a word, they name it themselves.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from ldm_jax.training.stopping import AGAIN, Alone, Hosts

BEAT = 2.0  # seconds
LEAST = 5 * BEAT  # seconds of silence that may count
STILL = 5 * BEAT  # seconds: a process that does not come to look for so long was not running itself
RUNS, ENDED, FAILED, AWAY = "runs", "ended", "failed", "away"


@contextmanager
def between(hosts: Hosts | None, silent: float, leave: Callable[[str, int], None]) -> Iterator[None]:
    """While the block runs, this host gives signs of life and looks for those of the others.

    When one was not heard for `silent` seconds (0 = never), `leave` is called from another thread with words that name
    it, and with an exit code: AGAIN if it is gone or said that it could not reach a bucket, 1 if it said that it ended
    with an error. hosts: None if there is one alone.

    An error in the block may be that of another host which is lost: then the error is printed, and the end is that of
    the other hosts.
    """
    if hosts is None or silent <= 0:
        yield
        return
    heart = Heartbeat(hosts, silent, leave)
    heart.start()
    try:
        yield
    except Exception:
        traceback.print_exc()
        heart.failed()
        sys.exit(1)
    except Alone:
        heart.away()
        raise
    except SystemExit as error:
        heart.end(ENDED if error.code in (None, 0, AGAIN) else FAILED)
        raise
    except BaseException:
        heart.end(FAILED)
        raise
    heart.end(ENDED)


class Heartbeat:
    """Arguments as `between`."""

    def __init__(self, hosts: Hosts, silent: float, leave: Callable[[str, int], None]):
        self.hosts, self.silent, self.leave = hosts, silent, leave
        self.state, self.count = RUNS, 0
        self.over, self.told, self.left = threading.Event(), threading.Event(), threading.Event()
        now = time.monotonic()
        self.answered = now  # when the store did so last
        self.signs: dict[int, str] = {}  # the newest of each other host
        self.heard = {host: now for host in range(hosts.hosts) if host != hosts.host}  # when it last was a new one

    def start(self) -> None:
        self._beat()
        for name, call in (("signs of life", self._beats), ("lost hosts", self._watch)):
            threading.Thread(target=call, name=name, daemon=True).start()

    def end(self, state: str) -> None:
        """The last sign. Afterwards nobody is named."""
        self.over.set()
        self.state = state
        last = threading.Thread(target=self._beat, name="last sign of life", daemon=True)
        last.start()
        last.join(BEAT)  # a store that cannot be reached may never answer

    def failed(self) -> None:
        """Returns when all hosts have failed or ended, so that the error is one of all. Otherwise, or if one was AWAY,
        the process ends: with the words for a host that is lost or was away, or because no host was lost."""
        self.state = FAILED
        until = time.monotonic() + self.silent + 3 * BEAT
        while time.monotonic() < until:
            if len(self.signs) == len(self.heard) and all(_state(sign) != RUNS for sign in self.signs.values()):
                self.end(FAILED)
                if told := self._told(AWAY):
                    self.leave(f"{told}: that has caused the error, and this host ends, too", AGAIN)
                return
            time.sleep(min(BEAT, 1.0))
        if self.told.is_set():  # a lost host was named, and this process ends for that
            self.left.wait()
            return
        self.end(FAILED)
        self.leave("this host has ended with the error above; no other host was lost", 1)

    def away(self) -> None:
        """Ends the process for a bucket that cannot be reached. Not by Python's exit, at which JAX waits for all hosts.
        The first host waits until the others have seen it, because it has the store."""
        self.end(AWAY)
        until = time.monotonic() + self.silent + 5 * BEAT
        while self.hosts.host == 0 and time.monotonic() < until:
            self._beat()
            if all(host in self.signs and _state(self.signs[host]) != RUNS for host in self.heard):
                break
            time.sleep(min(BEAT, 1.0))
        self.leave("this host ends, and the others with it; the same command on all hosts goes on", AGAIN)

    def _beats(self) -> None:
        while not self.over.wait(BEAT):
            self._beat()

    def _beat(self) -> None:
        self.count += 1
        sign = dict(count=self.count, state=self.state, name=socket.gethostname(), pid=os.getpid())
        try:
            self.hosts.beat(json.dumps(sign))
            found = self.hosts.beats()
        except Exception:  # the store does not answer; `_watch` knows since when
            return
        self.answered = time.monotonic()
        for host, sign in found.items():
            if host == 0 and host in self.heard and host not in self.signs:
                self.signs[host] = sign
                print(f"host {self.hosts.host} of {self.hosts.hosts}; the leader is {self._name(0)}", flush=True)
            if host in self.heard and sign != self.signs.get(host):
                self.signs[host] = sign
                if _state(sign) == RUNS:
                    self.heard[host] = self.answered

    def _watch(self) -> None:
        last = time.monotonic()
        while not self.over.wait(min(BEAT, 1.0)):
            now = time.monotonic()
            if now - last > STILL:
                self.answered = now
                self.heard = dict.fromkeys(self.heard, now)
            last = now
            told, code = self._lost(now)
            if told and not self.over.is_set():
                self.told.set()
                print(told, flush=True)
                if self.hosts.host == 0:
                    time.sleep(3 * BEAT)  # the others read the store of this host, to name the same ones
                self.leave(
                    "this host ends, too; the same command on all hosts goes on from the newest checkpoint", code
                )
                self.left.set()
                return

    def _lost(self, now: float) -> tuple[str, int]:
        """Words for the hosts that are lost, and the exit code; "" if there are none."""
        if self.hosts.host != 0 and now - self.answered > self.silent:
            return f"{self._name(0)} does not answer: it was last heard {now - self.answered:.0f} s ago", AGAIN
        ages = {host: self.answered - heard for host, heard in self.heard.items()}
        state = {host: _state(self.signs.get(host)) for host in ages}
        gone = [host for host, age in ages.items() if state[host] == RUNS and age > self.silent]
        if gone:
            names = (f"{self._name(host)} was last heard {ages[host]:.0f} s ago" for host in gone)
            return f"{'; '.join(names)}. It has died, or cannot be reached", AGAIN
        late = [host for host, age in ages.items() if age > self.silent + 2 * BEAT]
        failed = self._told(FAILED, late)
        return (failed, 1) if failed else (self._told(AWAY, late), AGAIN)

    def _told(self, state: str, of: Collection[int] | None = None) -> str:
        """Words for the hosts that have ended with FAILED or AWAY, all or those in `of`; "" if there are none."""
        why = "with an error" if state == FAILED else "because it could not reach a bucket"
        hosts = [host for host, sign in self.signs.items() if _state(sign) == state and (of is None or host in of)]
        return "; ".join(f"{self._name(host)} has ended {why}, which its own output tells" for host in sorted(hosts))

    def _name(self, host: int) -> str:
        if host not in self.signs:
            return f"host {host}"
        sign = json.loads(self.signs[host])
        return f"host {host} ({sign['name']}, process {sign['pid']})"


def _state(sign: str | None) -> str:
    return RUNS if sign is None else json.loads(sign)["state"]
