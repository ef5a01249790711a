"""Two processes train together as one does: the loop over `--distributed`."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.fast import flags
from tests.training.test_loop import ROOT, metrics, parameters, train

RUN = ["train.py", "--config=configs/quickstart_ldm.py:tiny"]
OPTIONS = ["--config.steps=4", "--config.mesh.fsdp=2"]


def start(workdir, *options, run=RUN, second=(), env=({}, {})):
    """Two processes of one device each, and the files that they print into. second: options of the second alone; env:
    variables of each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started, files = [], []
    for host in range(2):
        files.append(workdir.with_name(f"{workdir.name}_{host}_{port}.log"))
        variables = os.environ | env[host] | {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags("--xla_force_host_platform_device_count=1"),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(host),
        }  # fmt: skip
        started.append(subprocess.Popen(
            [sys.executable, *run, f"--workdir={workdir}", "--distributed", *options, *(second if host else ())],
            cwd=ROOT, env=variables, stdout=files[-1].open("w"), stderr=subprocess.STDOUT,
        ))  # fmt: skip
    return started, files


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
    while "step 6/" not in files[0].read_text() and not any(p.poll() for p in processes):
        time.sleep(0.2)
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
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    result = subprocess.run(
        [sys.executable, *RUN, f"--workdir={tmp_path}", "--distributed", "--join-timeout=2"], cwd=ROOT, text=True,
        env=env | {"JAX_PROCESS_ID": own}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 75, result.stderr
    told = f"not all hosts of this run (2) have joined within 2 s; this is host {own}. See which one has not started"
    assert (
        told in result.stdout
        and f"the first one at {address}" in result.stdout
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
