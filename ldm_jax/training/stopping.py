"""A run that can be stopped at any time and started again: signals, a limit on the run time, several hosts.

SIGTERM (preemption), SIGUSR1 (Slurm's --signal), SIGINT (Ctrl-C) and --max-minutes ask a run to stop. What follows
depends on what the run does at that moment:

* before the first step (imports, waiting for other hosts, measuring, caching latents, compiling, work that is done
  again after a resume): nothing is new, so the process ends at once;
* in a step: the run saves the state and ends after it, at the next gate;
* while it has a finished state in hand and waits for something else (data, validation, pictures, metrics), on one
  host: another thread saves that state and ends the process, whatever the main thread does;
* the same on several hosts: all end at the same gate and save. Gates are after each step, before each batch of
  validation, after each step of sampling pictures, and before each part of the samples for metrics. Hosts interrupt
  no wait for data, no compilation, and no comparison of samples with the reference;
* after the last step: nothing is left to do but to close files, so the run ends by itself.

The exit code is AGAIN: the same command goes on. 0 means that the run is complete. A second Ctrl-C ends the process at
once with the code 130, saves nothing and tidies nothing up. A bucket that does not answer ends a run with AGAIN as
well; on one host the state is saved first. A host that gets no answer from another one ends with the
code 1.

Python runs signal handlers in the main thread only, and not while that compiles or waits for a device. So a thread
listens: `signal.set_wakeup_fd` writes the signal's number into a pipe as soon as it arrives.

This module imports nothing slow: signals are caught from the first line of the command on.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ldm_jax.errors import Outage, UsageError

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: stopped before the end, start the same command again
UNUSABLE = 2  # what the user has to mend first
INTERRUPTED = 130  # as shells have it: ended by the second Ctrl-C
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL = 1.0  # seconds between a host's looks for a stop that another host was asked for
ANSWER = 60.0  # seconds in which all hosts must have seen it
NOTHING = 0  # a host before the first step says this in place of its gate


class Stopped(Exception):
    """The run was asked to stop and has reached the place where it may."""


class Alone(SystemExit):
    """The end of this process with AGAIN that the other hosts have not agreed to."""

    def __init__(self):
        super().__init__(AGAIN)


class Stop:
    """Whether the run was asked to stop. As a context it catches SIGNALS; without, nobody asks unless `ask` is called.

    A gate is a place that all hosts pass in the same order. `began`: time.perf_counter() at the start.
    """

    def __init__(self):
        self.began = time.perf_counter()
        self.why = ""  # who asked; "" = nobody
        self._lock = threading.Lock()
        self._begun = self._closed = False
        self._save: Callable[[], str] | None = None
        self._code = AGAIN  # with which the process ends after it
        self._gates, self._last_gate = 0, None
        self._hosts: Hosts | None = None
        self._previous: dict[int, Any] = {}
        self._at_exit: list[Callable[[], None]] = []

    def __enter__(self) -> "Stop":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows handlers in the main thread only
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # a job in the background of a script ignores Ctrl-C
                self._previous[number] = signal.signal(number, lambda *_: None)  # the thread does the work
        threading.Thread(target=self._listen, args=(read,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._write)  # ends the thread

    def _listen(self, pipe: int) -> None:
        interrupts = 0
        while number := os.read(pipe, 1):
            if number[0] not in SIGNALS:
                continue
            interrupts += number[0] == signal.SIGINT
            if interrupts > 1:
                self._leave("second Ctrl-C: the process ends at once, nothing is saved", INTERRUPTED)
            name = signal.Signals(number[0]).name
            how = " (once more: it ends at once and saves nothing)" if interrupts else ""
            print(f"{name}: the run saves what is new and ends{how}", file=sys.stderr, flush=True)
            self.ask(name)
        os.close(pipe)

    def after(self, minutes: float) -> None:
        """Asks to stop when `minutes` have passed since the start."""
        left = minutes * 60 - (time.perf_counter() - self.began)
        timer = threading.Timer(max(left, 0), self.ask, [f"the run time of {minutes:g} minutes is over"])
        timer.daemon = True
        timer.start()

    def share(self, hosts: "Hosts | None") -> None:
        """From now on the hosts stop together. None: this one is alone."""
        if hosts is None:
            return
        self._hosts = hosts
        threading.Thread(target=self._follow, name="stop of any host", daemon=True).start()

    def ask(self, why: str) -> None:
        """Asks the run to stop. Returns at once."""
        threading.Thread(target=self._act, args=(why,), name="stop", daemon=True).start()

    def _act(self, why: str) -> None:
        if self._hosts:
            self._hosts.announce(why)  # `_follow` of each host, of this one too, sees it
            return
        with self._lock:
            if self.why or self._closed:
                return
            self.why = why
            if not self._begun:
                self._leave_as_it_was()
            if self._save:
                self._save_and_leave()

    def _follow(self) -> None:
        while not (why := self._hosts.announced()):
            time.sleep(POLL)
        self._agree(why)

    def _agree(self, why: str) -> None:
        """Makes the last gate that of the host that is furthest. The lock keeps this host from going on meanwhile.

        A host before its first step cannot have let the others finish theirs: then nothing is new on any host. A host
        that does not learn the others' gates ends with an error: it would go on into a step in which nobody joins it.
        """
        with self._lock:
            try:
                gates = self._hosts.exchange(self._gates + 1 if self._begun else NOTHING)
            except Exception as error:
                if self._closed:
                    return  # the run ends by itself
                self._leave(
                    f"asked to stop ({why}), but not all hosts answered within {ANSWER:g} s ({error}). This host ends "
                    "with an error and saves nothing; the same command goes on from the newest checkpoint",
                    1,
                )
            self.why = why
            if NOTHING in gates:
                self._hosts.part()
                self._leave_as_it_was()
            self._last_gate = max(gates)

    def at_exit(self, call: Callable[[], None]) -> None:
        """`call` is called before a stop ends the process, from another thread; not at a second Ctrl-C."""
        self._at_exit.append(call)

    def begin(self) -> None:
        """From now on there is something to save."""
        with self._lock:
            self._begun = True

    def close(self) -> None:
        """From now on the run ends by itself."""
        with self._lock:
            self._closed = True

    def reached(self) -> bool:
        """Passes a gate. True: the run stops here. All hosts say the same."""
        with self._lock:
            self._gates += 1
            if self._hosts:
                return self._last_gate is not None and self._gates >= self._last_gate
            return bool(self.why)

    def check(self) -> None:
        """Passes a gate. Raises Stopped if the run stops here."""
        if self.reached():
            raise Stopped

    @contextmanager
    def guard(self, save: Callable[[], str], code: int = AGAIN) -> Iterator[None]:
        """A context in which the run has a whole state in hand. If it is asked to stop, another thread calls `save`,
        which returns the last words, and ends the process with `code`. On several hosts it does nothing."""
        if self._hosts:
            yield
            return
        with self._lock:
            self._save, self._code = save, code
            if self.why:
                self._save_and_leave()
        try:
            yield
        finally:
            with self._lock:  # never given back to this thread once it saves
                self._save = None

    def _save_and_leave(self) -> NoReturn:
        try:
            told = self._save()
        except UsageError as error:
            code = AGAIN if isinstance(error, Outage) else UNUSABLE
            self._leave(f"asked to stop ({self.why}): {error}", code)
        except BaseException:
            traceback.print_exc()
            self._leave(f"asked to stop ({self.why}), but the state could not be saved", 1)
        self._leave(told, self._code)

    def leave(self, told: str, code: int) -> NoReturn:
        """Ends the process from any thread; nothing is saved."""
        self._leave(told, code)

    def _leave_as_it_was(self) -> NoReturn:
        self._leave("asked to stop: nothing was trained yet; the same command starts again", AGAIN)

    def _leave(self, told: str, code: int) -> NoReturn:
        """Ends the process from any thread."""
        print(told, flush=True)
        for call in self._at_exit if code != INTERRUPTED else ():  # such a call may take long, on a disk that is away
            try:
                call()
            except Exception:
                traceback.print_exc()
        sys.stderr.flush()
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)


class Hosts:
    """What hosts tell each other of a stop and of their life, in the key-value store of JAX's distributed service.

    client: jaxlib's DistributedRuntimeClient, or one with its five methods that are used here.
    """

    def __init__(self, client: Any, host: int, hosts: int):
        self.client, self.host, self.hosts = client, host, hosts

    @classmethod
    def joined(cls) -> "Hosts | None":
        """The hosts that this process has joined; None if it is alone."""
        from jax._src import distributed  # JAX has no public name for its client

        state = distributed.global_state
        return cls(state.client, state.process_id, state.num_processes) if (state.num_processes or 1) > 1 else None

    def announce(self, why: str) -> None:
        self.client.key_value_set("ldm_jax/stop", why, allow_overwrite=True)

    def announced(self) -> str:
        """Why a host was asked to stop; "" if none was."""
        try:
            return self.client.key_value_try_get("ldm_jax/stop")
        except Exception:  # JAX's error for a key that nobody has set
            return ""

    def exchange(self, mine: int) -> list[int]:
        """The numbers of all hosts."""
        self.client.key_value_set(f"ldm_jax/gate/{self.host}", str(mine), allow_overwrite=True)
        keys = [f"ldm_jax/gate/{host}" for host in range(self.hosts)]
        return [int(self.client.blocking_key_value_get(key, int(ANSWER * 1000))) for key in keys]

    def beat(self, sign: str) -> None:
        """Writes this host's sign of life."""
        self.client.key_value_set(f"ldm_jax/beat/{self.host}", sign, allow_overwrite=True)

    def beats(self) -> dict[int, str]:
        """The newest sign of each host that has given one."""
        return {int(key.rpartition("/")[2]): sign for key, sign in self.client.key_value_dir_get("ldm_jax/beat/")}

    def part(self) -> None:
        """Returns when all hosts may end; the first one ends last, because it has the store."""
        try:
            self.client.wait_at_barrier("ldm_jax/parted", 5000)
        except Exception as error:
            print(f"hosts end without waiting for each other: {error}", file=sys.stderr)
        if self.host == 0:
            time.sleep(1)
