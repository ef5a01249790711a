"""Two processes train together as one does: the loop over `--distributed`."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ldm_jax import checkpoint
from tests.several_hosts import of_hosts
from tests.training.test_loop import ROOT, SMALL, environment, metrics, parameters, train

RUN = ["train.py", "--config=configs/quickstart_ldm.py:tiny"]
OPTIONS = ["--config.steps=4", "--config.mesh.fsdp=2"]


def start(workdir, *options, run=RUN, second=(), devices=1, env=({}, {})):
    """Two processes of one device or more each, and the files that they print into. second: options of the second
    alone; env: variables of each."""
    started, files = [], []
    for host, variables in enumerate(of_hosts()):
        port = variables["JAX_COORDINATOR_ADDRESS"].partition(":")[2]
        files.append(workdir.with_name(f"{workdir.name}_{host}_{port}.log"))
        variables = environment(devices) | variables | env[host]
        started.append(subprocess.Popen(
            [sys.executable, *run, f"--workdir={workdir}", "--distributed", *options, *(second if host else ())],
            cwd=ROOT, env=variables, stdout=files[-1].open("w"), stderr=subprocess.STDOUT,
        ))  # fmt: skip
    return started, files


def wait_for(words, processes, file):
    """Until they are printed, or a process has ended."""
    while words not in file.read_text() and not any(p.poll() for p in processes):
        time.sleep(0.2)


def finish(processes, files, code=0):
    """What each printed."""
    try:
        codes = [p.wait(timeout=600) for p in processes]
    finally:
        for p in processes:
            p.kill()
    texts = [file.read_text() for file in files]
    assert codes == [code, code], "\n\n".join(texts)
    return texts


@pytest.mark.slow
def test_two_hosts_do_what_one_does_and_stop_together(tmp_path):
    texts = finish(*start(tmp_path / "two", *OPTIONS))
    train(tmp_path / "one", *OPTIONS, devices=2)
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() == {1, 2, 3, 4}
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    np.testing.assert_allclose(metrics(tmp_path / "two", "val_loss")[4], metrics(tmp_path / "one", "val_loss")[4], 1e-4)
    a, b = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert list((tmp_path / "two" / "pictures").iterdir())
    assert "step 4/4" in texts[0] and "step 4/4" not in texts[1]  # the first host alone reports

    asked = ["--num=3", "--steps=3", "--npz", "--checkpoint=4"]
    two, one = tmp_path / "of_two", tmp_path / "of_one"
    texts = finish(*start(tmp_path / "two", *asked, f"--out={two}", run=["sample.py"]))
    assert "3 images in" in texts[0] and "images in" not in texts[1]
    command = [sys.executable, "sample.py", f"--workdir={tmp_path / 'two'}", f"--out={one}", *asked]
    subprocess.run(command, cwd=ROOT, check=True)
    made, alone = (np.load(out / "samples.npz")["arr_0"].astype(int) for out in (two, one))
    assert np.abs(made - alone).max() <= 1 and np.mean(made != alone) < 0.01

    more = ["--config.steps=100000", "--config.mesh.fsdp=2", "--config.every.evaluate=0", "--config.every.picture=0"]
    processes, files = start(tmp_path / "two", *more)
    wait_for("step 6/", processes, files[0])
    for p in processes:
        p.send_signal(signal.SIGTERM)
    assert "is saved; the same command goes on from there" in finish(processes, files, code=75)[0]


def test_who_takes_part_must_be_told(tmp_path):
    result = subprocess.run(
        [sys.executable, *RUN, f"--workdir={tmp_path}", "--distributed"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert result.returncode == 2 and "JAX_COORDINATOR_ADDRESS=HOST:PORT" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("own", ["0", "1"])
def test_hosts_that_do_not_come_are_told_of(tmp_path, own):
    """JAX would end the process with the code 134 and name nobody."""
    variables = of_hosts()[int(own)]
    result = subprocess.run(
        [sys.executable, *RUN, f"--workdir={tmp_path}", "--distributed", "--join-timeout=2"], cwd=ROOT, text=True,
        env=os.environ | variables, capture_output=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 75, result.stderr
    told = f"not all hosts of this run (2) have joined within 2 s; this is host {own}. See which one has not started"
    assert (
        told in result.stdout
        and f"the first one at {variables['JAX_COORDINATOR_ADDRESS']}" in result.stdout
        and "Check failure" not in result.stderr
    )


@pytest.mark.slow
def test_hosts_have_their_images_where_they_like(tmp_path):
    """Also when the run goes on."""
    for host in range(2):
        (tmp_path / f"{host}").mkdir()
        for i in range(8):
            Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{host}" / f"{i}.png")
    run = ["train.py", "--config=quickstart_first_stage:tiny", "--config.data.source=folder"]
    options = ["--config.data.validation_fraction=0.3", f"--config.data.path={tmp_path / '0'}"]
    for steps in (2, 3):
        more = [*options, f"--config.steps={steps}"]
        second = [f"--config.data.path={tmp_path / '1'}"]
        texts = finish(*start(tmp_path / "run", *more, run=run, second=second))
        assert f"split of {tmp_path / '1'}" in texts[1] and "Traceback" not in texts[0]
    assert metrics(tmp_path / "run").keys() >= {3}


@pytest.mark.slow
def test_hosts_that_are_not_alike_end_and_are_named(tmp_path):
    texts = finish(*start(tmp_path / "run", *OPTIONS, second=["--config.seed=3"]), code=2)
    for text in texts:
        assert "host 1 (" in text and "config.seed is 3, on host 0 0" in text and "Traceback" not in text
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_run_that_moves_between_machines_is_the_run_on_one_device(tmp_path):
    """Killed on eight devices, stopped on two hosts of two devices each, complete on one device. Sums have another
    order on each. Adam divides by the gradients' size; a larger eps keeps it from making much of their rounding."""
    workdir, options = tmp_path / "run", [*SMALL, "--config.optim.eps=1e-3", "--config.every.checkpoint=4"]
    several = [*options, "--config.steps=100000", "--config.mesh.fsdp=2"]
    log = tmp_path / "eight.log"
    command = [sys.executable, *RUN, f"--workdir={workdir}", *several]
    eight = subprocess.Popen(command, cwd=ROOT, env=environment(8), stdout=log.open("w"), stderr=subprocess.STDOUT)
    wait_for("step 10/", [eight], log)
    while not checkpoint.steps(workdir) and eight.poll() is None:  # it is written in the background
        time.sleep(0.1)
    eight.kill()
    assert eight.wait() == -signal.SIGKILL, log.read_text()

    processes, files = start(workdir, *several, devices=2)
    wait_for("/100000  loss", processes, files[0])
    processes[1].send_signal(signal.SIGTERM)
    told, _ = finish(processes, files, code=75)
    begun, stopped = (int(re.search(words, told)[1]) for words in (r"at step (\d+)\n", r"step (\d+) is saved"))
    assert 4 <= begun < stopped and "mesh {'data': 2, 'fsdp': 2}" in told

    last = f"--config.steps={stopped + 4}"
    told, _ = train(workdir, *options, last)
    assert f"resumed {workdir} at step {stopped}" in told
    train(tmp_path / "straight", *options, last)
    moved, straight = (metrics(folder) for folder in (workdir, tmp_path / "straight"))
    assert list(moved) == list(straight) == list(range(1, stopped + 5))
    np.testing.assert_allclose(list(moved.values()), list(straight.values()), rtol=1e-5)
    ours, theirs = parameters(workdir), parameters(tmp_path / "straight")
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
