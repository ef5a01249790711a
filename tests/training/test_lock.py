"""The lock of a run directory: who holds it, who is refused, and when it is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldm_jax import process
from ldm_jax.cli import train
from ldm_jax.errors import ConfigError
from ldm_jax.training import lock, setup
from tests.several_hosts import of_hosts

ROOT = Path(__file__).resolve().parents[2]


def as_if(workdir, **changes):
    """A lock as another process has left it, of `changes`."""
    (workdir / "train.lock").write_text(json.dumps(lock._this_process() | changes))


def age(workdir, seconds):
    now = time.time()
    os.utime(workdir / "train.lock", (now - seconds, now - seconds))


def test_the_second_run_is_refused(tmp_path):
    with lock.held(tmp_path):
        holder = json.loads((tmp_path / "train.lock").read_text())
        with pytest.raises(ConfigError) as error, lock.held(tmp_path):
            raise AssertionError("both have it")
        text = str(error.value)
        assert f"--workdir={tmp_path} belongs to another run: process {os.getpid()} on {holder['host']}" in text
        assert f"since {holder['since']}" in text and "last sign of life 0 s ago" in text
        assert f"remove {tmp_path / 'train.lock'}" in text
        assert [path.name for path in tmp_path.iterdir()] == ["train.lock"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), lock.held(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_of_many_that_start_together_one_wins(tmp_path):
    """Threads stand for processes: the file alone decides. Once with no lock before, once with a stale one."""

    def start(ready, won, lost):
        ready.wait()
        try:
            with lock.held(tmp_path):
                won.append(1)
                while len(won) + len(lost) < 8:
                    time.sleep(0.001)
        except ConfigError:
            lost.append(1)

    for began in (None, "1"):
        if began:
            as_if(tmp_path, began=began)
        ready, won, lost = threading.Barrier(8), [], []
        threads = [threading.Thread(target=start, args=(ready, won, lost)) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join(30) for thread in threads]
        assert (len(won), len(lost)) == (1, 7) and not list(tmp_path.iterdir())


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, capsys):
    """Killed, and not yet waited for by its parent; another process may have its number by now."""
    code = (
        "import sys, time; from ldm_jax.training import lock\n"
        "with lock.held(sys.argv[1]): print('on', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "on\n"
    with pytest.raises(ConfigError, match=f"process {child.pid} on "), lock.held(tmp_path):
        pass
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with lock.held(tmp_path):
        assert json.loads((tmp_path / "train.lock").read_text())["pid"] == os.getpid()
    assert f"taken over from process {child.pid} on" in capsys.readouterr().out
    child.wait()
    as_if(tmp_path, pid=os.getppid(), began="1")
    with lock.held(tmp_path):
        pass
    assert "whose process is gone" in capsys.readouterr().out


def test_another_machine_counts_as_alive_while_its_lock_is_renewed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SILENT", 1.0)
    holder = lock._Lock(tmp_path)
    holder.text = json.dumps(lock._this_process() | {"host": "far", "machine": "elsewhere", "pid": 7})
    holder.take()
    age(tmp_path, 0.5)
    with pytest.raises(ConfigError, match="process 7 on far"), lock.held(tmp_path):
        pass
    holder.release()
    holder = lock._Lock(tmp_path)
    holder.text = json.dumps(lock._this_process() | {"host": "far", "machine": "elsewhere", "pid": 7})
    holder._create(holder.path)  # without a sign of life
    began = time.monotonic()
    with lock.held(tmp_path):
        assert 0.5 < time.monotonic() - began < 5
    said = capsys.readouterr().out
    assert "waiting for a sign of life" in said and "from process 7 on far, which gave no sign of life for 1 s" in said
    for text in ("", "{", "[]"):  # its start was killed while it wrote
        (tmp_path / "train.lock").write_text(text)
        age(tmp_path, 100)
        with lock.held(tmp_path):
            pass
        assert "from a process that is starting, which gave no sign of life for 100 s" in capsys.readouterr().out


def test_a_process_that_proc_hides_counts_as_alive_while_its_lock_is_renewed(tmp_path, capsys, monkeypatch):
    """As one of another user with hidepid=2. Its number may be that of another process by now."""
    monkeypatch.setattr(lock, "SILENT", 1.0)
    none = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1  # no process has it

    def kill(pid, number):
        raise PermissionError if pid == none else ProcessLookupError

    monkeypatch.setattr(lock.os, "kill", kill)
    as_if(tmp_path, pid=none, began="5")
    renewed = threading.Timer(0.4, age, [tmp_path, 0])
    renewed.start()
    with pytest.raises(ConfigError, match=f"process {none} on "), lock.held(tmp_path):
        pass
    renewed.join()
    with lock.held(tmp_path):
        pass
    assert f"from process {none} on" in (said := capsys.readouterr().out) and "which gave no sign of life" in said
    as_if(tmp_path, pid=none + 1, began="5")
    with lock.held(tmp_path):
        pass
    assert "whose process is gone" in capsys.readouterr().out


def test_the_date_is_renewed_and_a_loss_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.held(tmp_path):
        age(tmp_path, 100)
        while time.time() - (tmp_path / "train.lock").stat().st_mtime > 50:
            time.sleep(0.01)
        as_if(tmp_path, pid=7, host="far")
        said = ""
        while "belongs to process 7 on far now" not in said:
            said += capsys.readouterr().out
            time.sleep(0.01)
    assert json.loads((tmp_path / "train.lock").read_text())["pid"] == 7  # not ours to remove


def test_a_lock_that_was_removed_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.held(tmp_path):
        (tmp_path / "train.lock").unlink()
        until = time.monotonic() + 5
        while not (tmp_path / "train.lock").exists() and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="belongs to another run"), lock.held(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_suspended_run_that_has_lost_its_directory_ends(tmp_path):
    """As soon as it goes on, though it gives a sign of life every 10 s alone; it does not touch the other's lock."""
    code = (
        "import sys, time; from functools import partial; from ldm_jax.training import lock, stopping\n"
        "lock.BEAT = 3.0\n"
        "with stopping.Stop() as stop:\n"
        "    held = lock.held(sys.argv[1], partial(stop.leave, code=stopping.UNUSABLE))\n"
        "    held.__enter__(); stop.at_exit(lambda: held.__exit__(None, None, None))\n"
        "    print('on', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "on\n"
    child.send_signal(signal.SIGSTOP)
    as_if(tmp_path, pid=7, host="far")
    time.sleep(3.0)
    child.send_signal(signal.SIGCONT)
    out, _ = child.communicate(timeout=3.0)
    assert child.returncode == 2 and "belongs to process 7 on far now" in out and "this run ends" in out, out
    assert json.loads((tmp_path / "train.lock").read_text())["pid"] == 7


def test_any_error_of_a_sign_of_life_is_of_one_beat_alone(tmp_path, monkeypatch):
    """A client of a bucket has errors of its own. The thread goes on after each, and renews the date."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    renew, failed = lock._Lock._renew, []

    def away(self):
        if len(failed) < 3:
            failed.append(1)
            raise (OSError, RuntimeError, KeyError)[len(failed) - 1]("away")
        return renew(self)

    monkeypatch.setattr(lock._Lock, "_renew", away)
    with lock.held(tmp_path):
        age(tmp_path, 100)
        until = time.monotonic() + 30
        while time.time() - (tmp_path / "train.lock").stat().st_mtime > 50 and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - (tmp_path / "train.lock").stat().st_mtime < 50 and len(failed) == 3


def test_a_folder_that_cannot_be_written(tmp_path):
    """A file in its place stands for a read-only disk, which the tests cannot make. New folders do not stay."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"--workdir=.*nothing can be written there"),
        lock.held(tmp_path / "file" / "x"),
    ):
        pass
    with lock.held(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / "train.lock").exists()
    assert not (tmp_path / "new").exists()
    with lock.held(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["config.json"]


def test_train_takes_the_lock_before_anything_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(process, "setup", lambda *_: None)
    with lock.held(tmp_path), pytest.raises(SystemExit) as end:
        train.main(["--config=quickstart_ldm:tiny", f"--workdir={tmp_path}"])
    assert end.value.code == 2 and "cannot start: --workdir" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    seen = []

    def training_run(*args):
        seen.append((args[1:], (tmp_path / "train.lock").exists()))
        raise ConfigError("enough")

    monkeypatch.setattr(setup, "training_run", training_run)
    for flag in ([], ["--accept_changes"], ["--accept-changes"]):
        with pytest.raises(SystemExit):
            train.main(["--config=quickstart_ldm:tiny", f"--workdir={tmp_path}", *flag])
    assert seen == [((tmp_path, False), True), ((tmp_path, True), True), ((tmp_path, True), True)]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_refusal_ends_all_hosts(tmp_path):
    """The first host alone looks at the lock; both end with the same words and the same code."""
    command = [sys.executable, "train.py", "--config=quickstart_ldm:tiny", f"--workdir={tmp_path}", "--distributed"]
    with lock.held(tmp_path):
        hosts = [
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=os.environ | variables,
            )
            for variables in of_hosts()
        ]  # fmt: skip
        said = [host.communicate(timeout=300)[0] for host in hosts]
        assert [host.returncode for host in hosts] == [2, 2], said
        assert all(f"belongs to another run: process {os.getpid()} on" in text for text in said), said
    assert not list(tmp_path.iterdir())
