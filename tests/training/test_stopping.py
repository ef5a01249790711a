"""A run can be stopped at any time and started again."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldm_jax import checkpoint, config_file, recipes
from ldm_jax.cli import train
from ldm_jax.training import stopping
from ldm_jax.training.stopping import AGAIN, INTERRUPTED, Hosts, Stop
from tests.fast import flags
from tests.several_hosts import of_hosts

ROOT = Path(__file__).resolve().parents[2]
SAVED_WITHIN = 5.0  # seconds; the toy's save takes less than one of them


def start(workdir, *options, **variables):
    """A process that runs toy_run.py."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags()} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.toy_run", str(workdir), *options],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process, words):
    """Reads what the process prints up to a line that begins with `words`."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(words):
            return
    raise AssertionError(f"no line {words!r}:\n{''.join(seen)}{process.stderr.read()}")


def signalled(process, number=signal.SIGTERM, within=SAVED_WITHIN):
    """What it printed after the signal; it ended in time, with the code AGAIN."""
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < within and process.returncode == AGAIN, out + err
    return out


def run(workdir, *options, code=0):
    process = start(workdir, *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return out + err


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "phase, number",
    [
        ("imports", signal.SIGINT),
        ("init", signal.SIGUSR1),
        ("compile", signal.SIGTERM),
        ("compile evaluation", signal.SIGTERM),
        ("compile pictures", signal.SIGINT),
    ],
)
def test_before_the_first_step_the_process_ends_at_once(phase, number, tmp_path):
    process = start(tmp_path, phase, "evaluate=3", "picture=3")
    wait_for(process, f"at {phase}")
    assert "nothing was trained yet" in signalled(process, number, within=2.0)
    assert not checkpoint.steps(tmp_path)


@pytest.mark.parametrize(
    "phase, number, step",
    [("data@5", signal.SIGUSR1, 4), ("evaluate@2", signal.SIGINT, 3), ("pictures", signal.SIGTERM, 3)],
)
def test_whatever_the_run_waits_for_its_state_is_saved(phase, number, step, tmp_path):
    """And validation and pictures that were interrupted are made when it goes on."""
    often = ["evaluate=3", "picture=3"]
    process = start(tmp_path, phase, *often)
    wait_for(process, f"at {phase.partition('@')[0]}")
    assert f"asked to stop: step {step} is saved" in signalled(process, number)
    assert checkpoint.steps(tmp_path) == [step]
    if phase != "evaluate@2":
        return  # one resume shows it
    out = run(tmp_path, *often)
    assert f"resumed {tmp_path} at step {step}" in out and "(evaluate and picture): this is done now" in out
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(tmp_path) if "val_loss" in line] == [3, 6]
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_a_stop_saves_the_state_where_metrics_cannot_be_written(tmp_path):
    """As on a full disk: metrics.jsonl cannot become larger, the checkpoint's files can be written."""
    long = json.dumps({"step": 0, "text": "a" * 2**20}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(long)
    process = start(tmp_path, "data@5", "log=100")
    wait_for(process, "at data")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (len(long), len(long)))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "Traceback" not in err, out + err
    assert "asked to stop (SIGTERM): " in out and "metrics.jsonl could not be written: File too large" in out, out
    assert checkpoint.steps(tmp_path) == [4]


def test_between_steps_the_run_ends_after_one(tmp_path):
    process = start(tmp_path, "steps=100000", "slow=0.01")
    wait_for(process, "step 5/")
    step = int(signalled(process).partition("asked to stop: step ")[2].split()[0])
    assert checkpoint.steps(tmp_path) == [step] and 5 <= step < 100


def test_the_run_time_can_be_limited(tmp_path):
    out = run(tmp_path, "steps=1000000", "slow=0.01", "max_minutes=0.1", code=AGAIN)
    assert "asked to stop: step" in out and len(checkpoint.steps(tmp_path)) == 1


def test_the_limit_is_an_option_of_the_command(capsys):
    args, _ = train.parse(["--config=quickstart_ldm:tiny", "--max_minutes=1.5"])
    assert args.max_minutes == 1.5
    with pytest.raises(SystemExit):
        train.parse(["--config=quickstart_ldm:tiny", "--max-minutes=0"])
    assert "--max-minutes=0 must be more than 0" in capsys.readouterr().err


def test_the_second_interrupt_ends_at_once(tmp_path):
    """Also in the first one's save, here one that never ends; and it waits for no disk to give the lock back."""
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "from ldm_jax.training.stopping import Stop\n"
        "with Stop() as stop:\n"
        "    stop.begin()\n"
        "    stop.at_exit(lambda: time.sleep(60))\n"
        "    with stop.guard(lambda: time.sleep(60)):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(1)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(60)\n"
    )
    began = time.monotonic()
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == INTERRUPTED and time.monotonic() - began < 10
    assert "nothing is saved" in process.stdout


def test_a_run_that_is_complete_ends_with_0_whenever_it_is_asked():
    stop = Stop()
    stop.begin()
    stop.close()
    stop._act("too late")
    assert not stop.why


def test_a_stop_while_steps_are_done_again_for_a_loss_that_is_not_finite_is_an_error(tmp_path):
    """Not AGAIN: the same command would come to the same step, again and again."""
    process = start(tmp_path, "gradients@2", "nan_at=2")
    wait_for(process, "at gradients")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "step 2: grad_norm, loss is not finite" in out + err


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with Stop():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_work_of_a_step_that_was_killed_is_done_first(tmp_path):
    """Killed when the checkpoint was there, and its validation and pictures were not."""
    often = ["evaluate=3", "picture=3", "checkpoint=3"]
    process = start(tmp_path, "evaluate@2", *often)
    wait_for(process, "at evaluate")
    while checkpoint.steps(tmp_path) != [3]:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not [line for line in lines(tmp_path) if "val_loss" in line]
    run(tmp_path, *often, "steps=3")  # its last step was done, but not all of its work
    seen = lines(tmp_path)
    assert [line["step"] for line in seen if "val_loss" in line] == [3]
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["samples_0000003.png"]
    assert "nothing to do" in run(tmp_path, *often, "steps=3") and lines(tmp_path) == seen


def test_runs_of_before_have_the_values_that_do_nothing(tmp_path):
    every = {"log": 50, "evaluate": 0, "picture": 0, "checkpoint": 5}
    (tmp_path / "config.json").write_text(json.dumps({"version": 2, "task": "ldm", "every": every}))
    config = config_file.load(tmp_path)
    now = recipes.load("quickstart_ldm")
    assert (
        config["every"] == every | {"checkpoint_minutes": now.every.checkpoint_minutes, "metrics": 0}
        and not config["noise_seed"]
    )
    for name in ("on_nonfinite", "nonfinite_limit", "noise_seed", "watchdog_minutes", "keep_every"):
        assert config[name] == now[name]
    assert config["metrics"] == now.metrics.to_dict()


def test_checkpoints_by_the_clock_and_the_share_of_waiting(tmp_path):
    out = run(tmp_path, "steps=4", "slow=0.2", "checkpoint_minutes=0.00001")
    assert checkpoint.steps(tmp_path) == [2, 3, 4]  # the newest three
    waits = [line["data_wait"] for line in lines(tmp_path)]
    assert all(0.5 < wait < 1 for wait in waits[1:-1]) and "waited for data " in out
    assert all(0 < line["goodput"] < 0.5 for line in lines(tmp_path))


def test_a_run_that_hangs_shows_its_stacks_and_ends(tmp_path):
    out = run(tmp_path, "data@3", "watchdog_minutes=0.02", code=1)
    assert "Timeout" in out and "toy_run.py" in out and "in run" in out


class Store:
    """The key-value store of JAX's distributed service, for hosts that are threads."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        return self.values[key]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, milliseconds / 1000)
            return self.values[key]

    def wait_at_barrier(self, key, milliseconds):
        pass


@pytest.mark.parametrize("seed", range(8))
def test_hosts_stop_at_one_gate(seed, monkeypatch):
    """Whenever one of them is asked, and whatever each is doing: also before the first gate."""
    monkeypatch.setattr(stopping, "POLL", 0.02)
    rng, store, ended = random.Random(seed), Store(), {}
    stops = [Stop() for _ in range(3)]
    together = threading.Barrier(3)  # a step needs all hosts, and lets none be more than one ahead

    def host(i, delays):
        for k in range(1, 200):
            time.sleep(delays[k % 5])
            together.wait(10)
            if stops[i].reached():
                ended[i] = k
                return

    for i, stop in enumerate(stops):
        stop.share(Hosts(store, i, 3))
        stop.begin()
    if seed == 0:
        stops[1].ask("SIGTERM")
        time.sleep(0.1)
    threads = [threading.Thread(target=host, args=(i, [rng.random() / 50 for _ in range(5)])) for i in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(rng.random() / 5)
    stops[seed % 3].ask("SIGTERM")
    for thread in threads:
        thread.join()
    assert len(ended) == 3 and len(set(ended.values())) == 1, ended
    assert seed or ended[0] == 1


def test_hosts_end_at_once_when_one_has_not_begun(monkeypatch):
    """No host can have finished a step that it did not begin."""
    monkeypatch.setattr(stopping, "POLL", 0.02)
    monkeypatch.setattr(stopping.Hosts, "part", lambda self: None)
    store, left = Store(), []
    stops = [Stop() for _ in range(2)]
    for i, stop in enumerate(stops):
        monkeypatch.setattr(stop, "_leave_as_it_was", lambda i=i: left.append(i))
    stops[0].begin()
    stops[0].reached()
    for i, stop in enumerate(stops):
        stop.share(Hosts(store, i, 2))
    stops[0].ask("SIGTERM")
    until = time.monotonic() + 10
    while len(left) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(left) == [0, 1]


def test_a_host_that_gets_no_answer_ends_with_an_error(monkeypatch):
    """It would wait in the next step for hosts that have stopped. One that is complete ends by itself."""
    monkeypatch.setattr(stopping, "POLL", 0.02)
    monkeypatch.setattr(stopping, "ANSWER", 0.1)
    left, done = [], threading.Event()

    def leave(told, code):
        left.append((told, code))
        done.set()
        threading.Event().wait()  # the process would end here

    stops = [Stop() for _ in range(2)]
    for stop in stops:
        monkeypatch.setattr(stop, "_leave", leave)
        stop.begin()
    stops[1].close()
    for stop in reversed(stops):
        stop.share(Hosts(Store(), 0, 2))
        stop.ask("SIGTERM")
    assert done.wait(10)
    time.sleep(0.3)
    ((told, code),) = left
    assert code == 1 and "asked to stop (SIGTERM), but not all hosts answered within 0.1 s" in told
    assert "goes on from the newest checkpoint" in told


def two_hosts(workdir, *options, waits=("", "")):
    one = flags("--xla_force_host_platform_device_count=1")
    return [
        start(workdir, *filter(None, [phase]), *options, XLA_FLAGS=one, **variables)
        for phase, variables in zip(waits, of_hosts())
    ]


@pytest.mark.slow
def test_two_hosts_stop_together_whichever_is_asked_and_whenever(tmp_path):
    def finish(processes):
        texts = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [AGAIN, AGAIN], texts
        return texts[0][0]

    hosts = two_hosts(tmp_path, "steps=100000", "slow=0.01")
    wait_for(hosts[0], "step 5/")
    hosts[1].send_signal(signal.SIGUSR1)
    step = int(finish(hosts).partition("asked to stop: step ")[2].split()[0])
    assert checkpoint.steps(tmp_path) == [step]
    # A resumed run, before its first step: in one host's compilation.
    hosts = two_hosts(tmp_path, "steps=100000", waits=("", "compile"))
    wait_for(hosts[1], "at compile")
    hosts[0].send_signal(signal.SIGTERM)
    assert "nothing was trained yet" in finish(hosts)
    assert checkpoint.steps(tmp_path) == [step]
    # In the first step after a resume.
    hosts = two_hosts(tmp_path, "steps=100000", "slow=2")
    wait_for(hosts[0], "planned memory ")
    hosts[0].send_signal(signal.SIGTERM)
    stopped = int(finish(hosts).partition("asked to stop: step ")[2].split()[0])
    assert step < stopped <= step + 2 and checkpoint.steps(tmp_path)[-1] == stopped
    # In validation: both leave it at the same batch.
    hosts = two_hosts(tmp_path, "steps=100000", f"evaluate={stopped + 1}", "eval_batches=100000", "slow=0.01")
    wait_for(hosts[0], f"step {stopped + 1}/")
    hosts[1].send_signal(signal.SIGTERM)
    assert f"asked to stop: step {stopped + 1} is saved" in finish(hosts)
