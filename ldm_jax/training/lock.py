"""One run directory, one training: a file train.lock in it says who trains, and shows that it is alive.

The file is made so that of two that start together one alone succeeds. Its date is renewed every `BEAT` seconds. A lock
whose process is gone is taken over, and so is one of another machine (or container) that gives no sign of life for
`SILENT` seconds; a start waits for that long, so that a run which is begun again elsewhere goes on by itself.

In a bucket the lock is an object. It is written anew every `BEAT` seconds with another number, because its date cannot
be renewed. Two starts may both write it, because an object cannot be made on the condition that there is none; so a
start looks again after `SETTLE` seconds: the one that has written last has the directory.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from ldm_jax import files, hosts
from ldm_jax.errors import ConfigError, ReadFailed, WriteFailed

NAME = "train.lock"
BEAT, SILENT = 10.0, 60.0  # seconds
SETTLE = 5.0  # seconds; more than an object needs to be written
UNKNOWN = "?"  # when a process began that is there, but cannot be looked at


@contextmanager
def held(workdir: str | Path, lost: Callable[[str], object] = print) -> Iterator[None]:
    """The run directory belongs to this process, or to its hosts together, until the end of the block.

    lost: called, from another thread, with what to say when another run has taken the directory over, which it does
    when this one was silent for too long. It should end the process. The directory is made if it does not exist.
    ConfigError where another run has it (the message says who and since when), or where nothing can be written; on all
    hosts.
    """
    workdir = files.at(workdir)
    lock = (_Lock if files.is_local(workdir) else _BucketLock)(workdir, lost)
    hosts.decided(lock.take)
    try:
        yield
    finally:
        if jax.process_index() == 0:
            lock.release()


class _Lock:
    def __init__(self, workdir: Path, lost: Callable[[str], object] = print):
        self.workdir, self.path, self.lost = workdir, workdir / NAME, lost
        self.text = json.dumps(_this_process(), indent=1) + "\n"
        self.made: list[Path] = []  # folders that did not exist before
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="train.lock", daemon=True)

    def take(self) -> None:
        try:
            self._make_folder()
            while not self._create(self.path):
                if self._take_over():
                    break
        except OSError as error:
            self._remove_folders()
            raise ConfigError(
                f"--workdir={self.workdir}: nothing can be written there ({error.strerror}). Give a folder on a disk "
                "that is not full or read-only, and that belongs to you"
            ) from error
        self.thread.start()

    def release(self) -> None:
        """Removes the lock, and the run directory if nothing was written into it."""
        self._end()
        if _read(self.path) == self.text:
            self.path.unlink(missing_ok=True)
        self._remove_folders()

    def _end(self) -> None:
        """Ends the signs of life."""
        self.ended.set()
        if threading.current_thread() is not self.thread:
            self.thread.join(BEAT)

    def _make_folder(self) -> None:
        missing = [folder for folder in (self.workdir, *self.workdir.parents) if not folder.exists()]
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.made = missing

    def _remove_folders(self) -> None:
        for folder in self.made:
            try:
                folder.rmdir()
            except OSError:  # something is in it
                return

    def _create(self, path: Path) -> bool:
        """Writes the lock file; False if it is there already."""
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, "w") as opened:
                opened.write(self.text)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def _take_over(self) -> bool:
        """Takes a lock whose holder is gone; False if it was removed meanwhile. ConfigError if the holder is alive, or
        if another start takes it."""
        before = _read(self.path)
        if before is None:
            return False
        reason = self._gone(before)
        right = self.path.with_name(f"{NAME}.taken")  # the right to replace the lock, so that one alone does it
        if right.exists() and self._age(right) > SILENT:
            right.unlink(missing_ok=True)
        if not reason or not self._create(right):
            raise ConfigError(self._refusal())
        try:
            if _read(self.path) != before:
                raise ConfigError(self._refusal())
            os.replace(right, self.path)
        except BaseException:
            right.unlink(missing_ok=True)
            raise
        print(f"{self.path}: taken over from {_name(before)}, {reason}", flush=True)
        return True

    def _gone(self, text: str) -> str:
        """Why the holder of a lock is gone; "" if it is alive. Waits for a sign of life where the process cannot be
        looked for."""
        holder = _parsed(text)
        if holder.get("machine") == _machine() and type(holder.get("pid")) is int:
            began = _started(holder["pid"])
            if began is not None and began == holder.get("began"):
                return ""
            if began != UNKNOWN:
                return "whose process is gone"
        age, date = self._age(self.path), self._date()
        if age <= SILENT:
            print(f"{self.path} is of {_name(text)}, {age:.0f} s ago: waiting for a sign of life", flush=True)
        while age <= SILENT:
            time.sleep(min(1.0, BEAT))
            if _read(self.path) != text or self._date() != date:
                return ""
            age = self._age(self.path)
        return f"which gave no sign of life for {age:.0f} s"

    def _date(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _age(self, path: Path) -> float:
        """Seconds since the date of a file, by the clock of the disk that it is on."""
        probe = path.with_name(f"{NAME}.{socket.gethostname()}.{os.getpid()}")
        try:
            probe.write_text("")
            return probe.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:  # the lock was removed just now
            return 0.0
        finally:
            probe.unlink(missing_ok=True)

    def _refusal(self) -> str:
        text = _read(self.path)
        holder = _parsed(text)
        return (
            f"--workdir={self.workdir} belongs to another run: {_name(text)}, since {holder.get('since', 'just now')}, "
            f"last sign of life {max(self._age(self.path), 0):.0f} s ago. Wait for it, stop it, or give another "
            f"--workdir. If you know that it is gone: remove {self.path}"
        )

    def _beat(self) -> None:
        """Renews the date of the lock, and at once after a time in which this process, or the machine, stood still.
        Calls `lost` and ends if another run has the directory now."""
        renewed = time.time()
        while not self.ended.wait(min(BEAT, 1.0)):
            if abs(time.time() - renewed) < BEAT:
                continue
            renewed = time.time()
            try:
                own = self._renew()
                text = None if own else _read(self.path)
            except Exception:  # the disk, or the bucket, is away for a while
                continue
            if text is not None:
                self.lost(
                    f"{self.path} belongs to {_name(text)} now, which has taken the directory over while this run gave "
                    "no sign of life: this run ends and saves nothing more there"
                )
                return

    def _renew(self) -> bool:
        """Whether it is this process's. One that was removed is written again."""
        text = _read(self.path)
        if text == self.text:
            os.utime(self.path)
        return text == self.text or (text is None and self._create(self.path))


class _BucketLock(_Lock):
    beats = 0

    def take(self) -> None:
        try:
            before = _read(self.path)
            reason = before and self._gone(before)
            if before and not reason:
                raise ConfigError(self._refusal())
            self._write()
            time.sleep(SETTLE)
            if not self._is_own(_read(self.path)):
                raise ConfigError(self._refusal())
        except OSError as error:
            raise ConfigError(
                f"--workdir={self.workdir}: nothing can be written there ({error}). Give a bucket that this machine "
                "may write"
            ) from error
        if reason:
            print(f"{self.path}: taken over from {_name(before)}, {reason}", flush=True)
        self.thread.start()

    def release(self) -> None:
        self._end()
        try:
            if self._is_own(_read(self.path)):
                with files.reaching(self.path, write=True):
                    self.path.unlink(missing_ok=True)
        except (ReadFailed, WriteFailed) as error:
            print(f"{error}. The lock stays there, and the next start takes it over", flush=True)

    def _write(self) -> None:
        self.beats += 1
        files.write(self.path, json.dumps(json.loads(self.text) | {"beat": self.beats}, indent=1) + "\n")

    def _is_own(self, text: str | None) -> bool:
        found = _parsed(text)
        found.pop("beat", None)
        return found == json.loads(self.text)

    def _gone(self, text: str) -> str:
        holder = _parsed(text)
        if holder.get("machine") == _machine() and type(holder.get("pid")) is int:
            began = _started(holder["pid"])
            if began != UNKNOWN:
                return "" if began is not None and began == holder.get("began") else "whose process is gone"
        print(f"{self.path} is of {_name(text)}: waiting for a sign of life", flush=True)
        until = time.monotonic() + SILENT
        while time.monotonic() < until:
            time.sleep(min(1.0, BEAT))
            if _read(self.path) != text:
                return ""
        return f"which gave no sign of life for {SILENT:.0f} s"

    def _age(self, path: Path) -> float:
        return 0.0  # `_gone` has just seen a sign of life

    def _renew(self) -> bool:
        text = _read(self.path)
        if own := text is None or self._is_own(text):
            self._write()
        return own


def _this_process() -> dict:
    return dict(
        host=socket.gethostname(), pid=os.getpid(), since=time.strftime("%Y-%m-%d %H:%M:%S %z"), machine=_machine(),
        began=_started(os.getpid()),
    )  # fmt: skip


def _machine() -> str:
    """What processes have in common that can see each other: the machine, from its start on, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the machine's own measure; None if there is no such process. UNKNOWN
    where /proc does not show it: not Linux, or a process of another user where /proc is mounted with hidepid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # it is there, and belongs to another user
        pass
    return UNKNOWN


def _read(path: Path) -> str | None:
    try:
        with files.opened(path) as file:
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return None


def _parsed(text: str | None) -> dict:
    """What a lock says; {} for one that is empty or damaged."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(text: str | None) -> str:
    holder = _parsed(text)
    return f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "a process that is starting"
