"""The scripts in launch/: they start train.py, and start it again when it ends with 75; on several hosts also when a
process has died, so many times at most."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ldm_jax.training import stopping
from tests import fast
from tests.several_hosts import free_address
from tests.training.test_loop import SMALL

LAUNCH = Path(__file__).resolve().parents[1] / "launch"


def script(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def run(tmp_path, name, *arguments, **variables):
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")} | variables
    return subprocess.run(["bash", LAUNCH / name, *arguments], env=env, capture_output=True, text=True, timeout=60)


def calls(tmp_path, name="calls"):
    path = tmp_path / name
    return path.read_text().splitlines() if path.exists() else []


def test_a_machine_starts_again_after_a_stop(tmp_path):
    """Two stops, then an end."""
    script(tmp_path / "python", f'echo "$*" >> {tmp_path}/calls; [ $(wc -l < {tmp_path}/calls) -gt 2 ] || exit 75')
    result = run(tmp_path, "local.sh", "--config=x", "--config.data.path=my images")
    assert result.returncode == 0 and result.stderr.count("started again") == 2
    assert calls(tmp_path) == ["train.py --require-accelerator --config=x --config.data.path=my images"] * 3


@pytest.mark.parametrize("code", [1, 2, 130])
def test_errors_are_not_repeated(tmp_path, code):
    script(tmp_path / "python", f"echo once >> {tmp_path}/calls; exit {code}")
    assert run(tmp_path, "local.sh").returncode == code and calls(tmp_path) == ["once"]


def test_a_machine_that_is_asked_to_stop_ends_after_the_save(tmp_path):
    script(tmp_path / "python", f"trap 'sleep 0.2; echo saved >> {tmp_path}/calls; exit 75' TERM\n"
           f"echo began >> {tmp_path}/calls; while true; do sleep 0.05; done")  # fmt: skip
    env = os.environ | {"PYTHON": str(tmp_path / "python")}
    with subprocess.Popen(["bash", LAUNCH / "local.sh"], env=env) as process:
        while not calls(tmp_path):
            pass
        process.terminate()
        assert process.wait(timeout=30) == 75
    assert calls(tmp_path) == ["began", "saved"]


def test_a_signal_to_the_script_between_two_starts_is_not_lost(tmp_path):
    """Here it comes with the words that are said before the second start: train.py, which has it, ends."""
    script(tmp_path / "python", f"trap 'echo saved >> {tmp_path}/calls; exit 75' TERM; echo began >> {tmp_path}/calls\n"
           f"[ $(wc -l < {tmp_path}/calls) -gt 1 ] || exit 75; while true; do sleep 0.05; done")  # fmt: skip
    text = (LAUNCH / "local.sh").read_text().replace('echo "started again" >&2', "kill -USR1 $$")
    assert "kill -USR1" in text
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "local.sh").write_text(text)
    env = os.environ | {"PYTHON": str(tmp_path / "python")}
    ended = subprocess.run(["bash", tmp_path / "launch" / "local.sh"], env=env, timeout=30)
    assert ended.returncode in (75, 143) and calls(tmp_path)[0] == "began"  # 143: before it listens to signals


def test_a_signal_of_a_batch_system_ends_a_machine(tmp_path):
    script(tmp_path / "python", f"trap 'echo saved >> {tmp_path}/calls; exit 75' TERM\n"
           f"echo began >> {tmp_path}/calls; while true; do sleep 0.05; done")  # fmt: skip
    env = os.environ | {"PYTHON": str(tmp_path / "python")}
    with subprocess.Popen(["bash", LAUNCH / "local.sh"], env=env) as process:
        while not calls(tmp_path):
            pass
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=30) == 75
    assert calls(tmp_path) == ["began", "saved"]


def test_jobset_knows_the_codes():
    jobs = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())["spec"]
    job = jobs["replicatedJobs"][0]["template"]["spec"]
    rules = [(rule["action"], rule["onExitCodes"]["values"]) for rule in job["podFailurePolicy"]["rules"]]
    assert rules == [("Ignore", [stopping.AGAIN]), ("FailJob", [stopping.UNUSABLE])]
    (container,) = job["template"]["spec"]["containers"]
    assert {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"]} == {container["name"]}
    assert jobs["failurePolicy"]["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy needs it


REQUEUED = ["requeue 42"]


@pytest.mark.parametrize(
    ("code", "deaths", "again"),
    [
        (0, "0", []), (1, "0", []), (2, "0", []), (stopping.AGAIN, "0", REQUEUED), (stopping.AGAIN, "400", REQUEUED),
        # Killed, ended by JAX, a bad address; the last try; Ctrl-C and scancel.
        (137, "", REQUEUED), (134, "1", REQUEUED), (139, "18", REQUEUED), (137, "19", []),
        (130, "0", []), (143, "0", []),
    ],
)  # fmt: skip
def test_a_job_of_slurm_is_queued_again_after_a_stop_or_a_death(tmp_path, code, deaths, again):
    """deaths: those before; restarts after a stop do not count."""
    if deaths:
        (tmp_path / "slurm-42.deaths").write_text(deaths)
    script(tmp_path / "srun", f'echo "$*" >> {tmp_path}/calls; exit {code}')
    script(tmp_path / "scontrol", f'echo "$*" >> {tmp_path}/asked')
    job = dict(SLURM_JOB_ID="42", SLURM_SUBMIT_DIR=str(tmp_path), SLURM_RESTART_COUNT="400")
    result = run(tmp_path, "slurm.sbatch", "--config=x y", **job)
    assert result.returncode == code and calls(tmp_path, "asked") == again
    assert ("a process died (code 137), number 20 in this job" in result.stderr) == (deaths == "19")
    assert calls(tmp_path, "slurm-42.deaths") == (
        [str(int(deaths or 0) + (code > 128))] if again and (deaths or code > 128) else []
    )
    (line,) = calls(tmp_path)
    assert line.endswith("python train.py --distributed --require-accelerator --config=x y")


def test_every_host_of_a_tpu_gets_the_same_command(tmp_path):
    script(tmp_path / "gcloud", f'printf "%s\\n" "$@" > {tmp_path}/calls')
    result = run(tmp_path, "tpu_vm.sh", "--config.data.path=my images", TPU="pod", ZONE="z", DIR="/mnt/a b")
    assert result.returncode == 0, result.stderr
    *_, host, command = calls(tmp_path)
    assert host == "--worker=all" and "--config.data.path=my\\ images" in command and "cd /mnt/a\\ b &&" in command
    inner = command.removeprefix("--command=").replace("cd /mnt/a\\ b", "cd .")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # Stopped, killed, ended by JAX, complete; an error; Ctrl-C; killed again and again.
    for codes, end, starts in (("75 137 134 0", 0, 4), ("75 1", 1, 2), ("130", 130, 1), ("137 " * 30, 137, 21)):
        (tmp_path / "ran").unlink(missing_ok=True)
        script(tmp_path / "python3", f'echo "$*" >> {tmp_path}/ran; set -- {codes}\n'
               f"shift $(($(wc -l < {tmp_path}/ran) - 1)); exit $1")  # fmt: skip
        assert subprocess.run(["sh", "-c", inner], env=env, cwd=tmp_path, timeout=30).returncode == end
        once = "train.py --distributed --require-accelerator --config.data.path=my images"
        assert calls(tmp_path, "ran") == [once] * starts
    assert run(tmp_path, "tpu_vm.sh", ZONE="z", DIR="d").returncode != 0  # no name


@pytest.mark.slow
def test_a_job_of_slurm_with_two_processes(tmp_path):
    """Slurm's signal reaches one of them in a step: both save, and the job is queued again."""
    script(
        tmp_path / "srun",
        f"""
        arguments=() processes=() worst=0
        for word in "$@"; do
            case $word in --kill-on-bad-exit=0 | --require-accelerator) ;; *) arguments+=("$word") ;; esac
        done
        for i in 0 1; do
            JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS={free_address()} JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=$i \\
                "${{arguments[@]}}" > {tmp_path}/$i.log 2>&1 &
            processes+=($!)
        done
        echo "${{processes[1]}}" > {tmp_path}/second
        for process in "${{processes[@]}}"; do
            wait "$process" || {{ code=$?; [ $code -le $worst ] || worst=$code; }}
        done
        exit $worst""",
    )
    script(tmp_path / "scontrol", f'echo "$*" >> {tmp_path}/asked')
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "SLURM_JOB_ID": "42",
        "SLURM_SUBMIT_DIR": str(LAUNCH.parent),
        "XLA_FLAGS": fast.flags("--xla_force_host_platform_device_count=1"),
    }  # fmt: skip
    options = ["--config=quickstart_ldm:tiny", f"--workdir={tmp_path / 'run'}", "--config.steps=100000", *SMALL]
    with subprocess.Popen(["bash", LAUNCH / "slurm.sbatch", *options], env=env) as process:
        while "step 3/" not in "".join(calls(tmp_path, "0.log")) and process.poll() is None:
            time.sleep(0.2)
        os.kill(int(calls(tmp_path, "second")[0]), signal.SIGUSR1)
        assert process.wait(timeout=120) == stopping.AGAIN, (tmp_path / "0.log").read_text()
    assert calls(tmp_path, "asked") == ["requeue 42"]
    step = re.search(r"step (\d+) is saved", (tmp_path / "0.log").read_text()).group(1)
    assert (tmp_path / "run" / "checkpoints" / step).is_dir()
