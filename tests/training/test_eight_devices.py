"""What a step is compiled to on eight devices: one process (eight_devices.py) for all tests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fast import flags

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def eight():
    """One process with eight devices."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"} | {"XLA_FLAGS": flags()}
    command = [sys.executable, "-m", "tests.training.eight_devices"]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_sum_over_parts_is_split_like_a_parameter(eight):
    """[512,512] is 1 MiB, an eighth of it on each device. The loop carries the eighth; on CPUs there is no loop."""
    loop, unrolled = eight["loop"], eight["unrolled"]
    assert loop["error"] < 1e-4 and unrolled["error"] < 1e-4
    assert loop["shard"] == unrolled["shard"] == [64, 512]
    (carried,) = loop["loops"]
    assert re.search(r"f32\[64,512\]", carried) and not re.search(r"f32\[512,512\]", carried)
    assert unrolled["loops"] == []


def test_each_of_four_devices_holds_about_a_quarter(eight):
    state, frozen = eight["drawn"]["held"]
    assert 0.25 <= state < 0.3 and 0.25 <= frozen < 0.3


def test_no_device_computes_the_images_of_others(eight):
    told, in_step = eight["plan"]
    assert in_step == [] and eight["drawn"]["evaluate"] == [], told


def test_pictures_of_training_are_made_by_all_devices(eight):
    """Four are asked for and eight are made, one a device."""
    assert eight["drawn"]["samples"] == [4, 8, 8, 3]
    assert eight["drawn"]["pictures"] == {"begin": [], "steps": [], "decode": []}


def test_what_is_compiled_for_shapes_is_what_pictures_run(eight):
    assert eight["drawn"]["programs"] == [3, 3]


def test_a_plan_for_eight_devices_that_are_not_there(eight):
    """The command, in a process that has none of them and no data."""
    told, _ = eight["plan"]
    for words in (
        "8 x NVIDIA H100 80 GB, mesh data=2 fsdp=4", "48 images, 6 a device in 2 parts", "trained", "frozen",
        "TFLOP in float32", "fits", "all-reduce", "all-gather", "estimate: a step", "estimate: images a second",
        "Nothing ran", "compiler was the one for CPUs",
    ):  # fmt: skip
        assert words in told, told
