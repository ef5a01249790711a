"""The loop through the command line, as a user runs it: train, kill, resume, sample."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_jax.cli import sample as sample_script
from ldm_jax.cli import train as train_script
from scripts import soak
from tests.fast import flags

ROOT = Path(__file__).resolve().parents[2]
# A UNet of one level and its middle: compiling takes most of a short run.
SMALL = ["--config.data.validation_images=8", "--config.every.evaluate=0", "--config.every.picture=0",
         "--config.optim.schedule=constant", "--config.unet.channel_mult=(1,)",
         "--config.unet.attention_downsamples=()"]  # fmt: skip
STEPS = 8  # a checkpoint every 2


def environment(devices=1):
    """Of a process; the same one for all of them: what one has compiled, the next finds in the cache."""
    number = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(number)}


def python(*command, devices=1, code=0):
    """A script in a process of its own: (what it printed, its errors)."""
    env = environment(devices)
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout, result.stderr


def here(main, *arguments, code=0):
    """The same in this process, which has imported everything: for commands that compile little."""
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patched.setenv("JAX_COMPILATION_CACHE_DIR", "as it is")  # this process has none
        patched.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # back to this afterwards
        try:
            main(list(arguments))
        except SystemExit as stopped:
            ended = stopped.code or 0
    assert ended == code, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()


def command(workdir, *options, recipe="quickstart_ldm"):
    return [f"--config={recipe}:tiny", f"--workdir={workdir}", *options]


def train(workdir, *options, recipe="quickstart_ldm", **kwargs):
    return python("train.py", *command(workdir, *options, recipe=recipe), **kwargs)


def metrics(workdir, name="loss"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def parameters(workdir):
    """Every array of the newest checkpoint."""
    return {name: np.asarray(array) for name, array in soak.arrays(workdir).items()}


def halfway(workdir, copy, step):
    """A copy of a run as it was when `step` was saved, but for its metrics, which go on to the end."""
    shutil.copytree(workdir, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    return copy


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run with a checkpoint every 2 steps."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, train(workdir, f"--config.steps={STEPS}", *SMALL)


def test_a_run_directory_is_complete(straight):
    workdir, (told, _) = straight
    assert "learning rate" in told and "global batch 8" in told
    assert "parameters" in told and "left" in told
    compiled = r"^compiled: training step [\d.]+ s\nplanned memory [\d.]+ GiB$"  # nothing else will be due
    assert re.search(compiled, told, re.M)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == ["4", "6", "8"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["steps"] == STEPS
    assert list(metrics(workdir)) == list(range(1, STEPS + 1))
    assert any((workdir / "tensorboard").iterdir())


def test_killed_run_ends_like_an_uninterrupted_one(straight, tmp_path):
    """SIGKILL after step 3 was logged, between two checkpoints; the same command finishes, bit for bit."""
    start = [sys.executable, "train.py", *command(tmp_path, f"--config.steps={STEPS}", *SMALL)]
    env = environment()
    process = subprocess.Popen(start, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 3/"):
            while not (tmp_path / "checkpoints" / "2").exists():  # it is written in the background
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    resumed = subprocess.run(start, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    assert re.search(r"resumed .* at step [24]", resumed.stdout), resumed.stdout
    ours, theirs = parameters(tmp_path), parameters(straight[0])
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    assert metrics(tmp_path) == metrics(straight[0])


def test_eight_devices_go_on_with_the_losses_of_one(straight, tmp_path):
    """Same random numbers per global sample index; float32 sums in another order: 1e-5 relative.

    The run changes its number of devices halfway: checkpoints fit any.
    """
    copy = halfway(straight[0], tmp_path / "copy", step=6)
    told, _ = train(copy, f"--config.steps={STEPS}", *SMALL, devices=8)
    assert "at step 6" in told
    one, many = metrics(straight[0]), metrics(copy)
    assert one.keys() == many.keys()
    for step in one:
        assert abs(one[step] - many[step]) <= 1e-5 * abs(one[step]), step


def test_first_stage_resumes_bit_for_bit(tmp_path):
    """Autoencoder, discriminator with its running statistics, and both optimisers; the GAN enters at step 2."""
    options = ["--config.every.evaluate=0", "--config.every.picture=0", "--config.optim.schedule=constant",
               "--config.first_stage.ch_mult=(1,1)", "--config.loss.disc_layers=1"]  # fmt: skip
    straight = tmp_path / "straight"
    train(straight, "--config.steps=6", *options, recipe="quickstart_first_stage")
    parts = halfway(straight, tmp_path / "parts", step=4)
    told, _ = train(parts, "--config.steps=6", *options, recipe="quickstart_first_stage")
    assert "at step 4" in told
    one, two = parameters(straight), parameters(parts)
    assert any("batch_stats" in name for name in one) and one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name
    assert metrics(straight, "l1") == metrics(parts, "l1")


def test_bfloat16_trains_like_float32_and_only_the_final_state_is_saved(straight, tmp_path):
    """Compute in bfloat16, parameters in float32: 8 bits of mantissa, so losses agree to a few per cent."""
    train(tmp_path, f"--config.steps={STEPS}", "--config.dtype=bfloat16", "--config.every.checkpoint=0", *SMALL)
    full, half = (np.array(list(metrics(w).values())) for w in (straight[0], tmp_path))
    assert np.isfinite(half).all() and not np.array_equal(full, half)
    assert np.abs(half / full - 1).max() < 0.05
    assert all(v.dtype != "bfloat16" for v in parameters(tmp_path).values())
    # The final state is saved whatever the interval.
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == [str(STEPS)]
    table = (tmp_path / "parameters.txt").read_text()
    assert "unet/time_embed_0/kernel" in table and "(32, 128)" in table and "Total: " in table


@pytest.mark.slow  # the same of a small network: test_nonfinite.py
def test_non_finite_loss_stops_and_names_the_step(tmp_path):
    _, error = train(tmp_path, "--config.steps=6", "--config.optim.learning_rate=1e30", *SMALL, code=1)
    assert re.search(r"step \d: .*is not finite", error)
    assert "Traceback" not in error


def test_another_model_does_not_resume_into_a_run(straight):
    changed = command(straight[0], *SMALL, "--config.unet.model_channels=64")
    _, error = here(train_script.main, *changed, code=2)
    assert "unet.model_channels: 32 there, 64 here" in error
    assert json.loads((straight[0] / "config.json").read_text())["unet"]["model_channels"] == 32


def test_a_finished_run_says_so(straight):
    told, _ = here(train_script.main, *command(straight[0], f"--config.steps={STEPS}", *SMALL))
    assert "nothing to do" in told


def test_sigterm_saves_and_the_run_goes_on(tmp_path):
    """Preemption: the step that was running is saved, whatever the checkpoint interval."""
    options = ["--config.steps=100000", "--config.every.checkpoint=50000", *SMALL]
    start = [sys.executable, "train.py", *command(tmp_path, *options)]
    process = subprocess.Popen(start, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step 3/"):
            process.terminate()
            break
    rest = process.stdout.read()
    assert process.wait() == 75
    step = int(re.search(r"asked to stop: step (\d+) is saved", rest).group(1))
    assert (tmp_path / "checkpoints" / str(step)).is_dir()


def test_unknown_option_is_an_error(tmp_path):
    _, error = here(train_script.main, *command(tmp_path, "--config.optim.learning_rat=1"), code=2)
    assert "config.optim.learning_rat " in error and "config.optim.learning_rate" in error


def test_sample_does_not_depend_on_the_batch(straight, tmp_path):
    workdir = straight[0]
    common = [f"--workdir={workdir}", "--steps=3", "--eta=1"]
    python("sample.py", *common, "--num=5", "--batch=5", f"--out={tmp_path / 'a'}", "--npz")
    here(sample_script.main, *common, "--num=3", "--batch=2", f"--out={tmp_path / 'b'}")
    for i in range(3):
        a, b = (np.asarray(Image.open(tmp_path / d / f"{i:06d}.png"), np.int16) for d in "ab")
        assert np.abs(a - b).max() <= 1  # rounding to uint8 may fall either way
    assert np.load(tmp_path / "a" / "samples.npz")["arr_0"].shape == (5, 32, 32, 3)
    assert Image.open(tmp_path / "a" / "000001.png").text["seed"] == "0"
    assert (tmp_path / "a" / "grid.png").exists()


def test_a_recipe_without_data_says_what_is_missing(tmp_path):
    _, error = here(train_script.main, "--config=configs/celeba_ldm4.py", f"--workdir={tmp_path / 'x'}", code=2)
    assert not (tmp_path / "x").exists()
    for words in ("cannot start", "celeb_a_hq", "--config.first_stage.checkpoint=", "configs/first_stage_vq_f4.py"):
        assert words in error


def test_sample_of_nothing_is_one_line(tmp_path):
    _, error = here(sample_script.main, f"--workdir={tmp_path}", code=2)
    assert "not a run directory" in error
