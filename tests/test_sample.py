"""What sample.py refuses, and how: one paragraph that says what the model takes. Config files are enough for that."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import sample
from ldm_jax.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "none": "celeba_ldm4", "class": "imagenet_ldm4", "class without null": "imagenet_ldm8", "text": "text2img_ldm8",
    "layout": "openimages_layout_ldm4", "semantic": "landscapes_semantic_ldm4", "superres": "imagenet_superres_ldm4",
    "inpaint": "places_inpainting_ldm4", "vectors": "rdm_768_ldm16",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories that hold nothing but a config.json, and some pictures beside them."""
    root = tmp_path_factory.mktemp("runs")
    for name, recipe in MODELS.items():
        config = importlib.import_module(f"configs.{recipe}").get_config("tiny")
        checkpoint.keep_config(root / name, config.to_dict())
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(root / "picture.png")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(root / "white.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "black.png")
    (root / "empty.txt").write_text("\n")
    return root


WRONG = [
    ("none", ["--label=1"], "takes no condition"),
    ("none", ["--prompt=x"], "--prompt means nothing here"),
    ("none", ["--guidance=2"], "drop_prob=0"),
    ("none", ["--size=63x64"], "63x64 pixels do not divide"),
    ("none", ["--size=36x64"], "multiples of 32"),
    ("none", ["--feather=2"], "--feather means nothing"),
    ("class", [], "--label is missing"),
    ("class", ["--label=64"], r"classes 0\.\.63"),
    ("class", ["--prompt=a dog"], "takes --label"),
    ("class without null", ["--label=1", "--guidance=3"], "drop_prob=0"),
    ("text", [], "--prompt or --prompts is missing"),
    ("text", ["--prompts=empty.txt"], "has no prompts"),
    ("text", ["--prompts=nowhere.txt"], "nowhere.txt"),
    ("layout", ["--layout=nowhere.json"], "does not exist"),
    ("layout", ["--layout=picture.png"], "a layout is a JSON list"),
    ("semantic", ["--segmentation=picture.png"], "picture in colours"),
    ("semantic", ["--segmentation=black.png", "--size=64x128"], "--size=64x128 means nothing"),
    ("superres", ["--mask=white.png"], "takes --image"),
    ("superres", ["--image=empty.txt"], "not a picture"),
    ("inpaint", ["--image=picture.png"], "--mask is missing"),
    ("inpaint", ["--mask=white.png"], "--image is missing"),
    ("inpaint", ["--image=picture.png", "--mask=black.png"], "marks nothing"),
    ("vectors", ["--vectors=picture.png"], r"not a \.npy"),
]


@pytest.mark.parametrize(("model", "options", "message"), WRONG)
def test_wrong_requests_are_refused(runs, monkeypatch, model, options, message):
    monkeypatch.chdir(runs)
    args = sample.parse([f"--workdir={model}", *options])
    config = ConfigDict(checkpoint.load_config(args.workdir))
    with pytest.raises((sample.WrongRequest, ValueError, FileNotFoundError), match=message) as error:
        sample._requests(args, config)
    assert len(str(error.value).splitlines()) <= 3


def test_a_refusal_is_one_paragraph_and_exit_code_2(runs):
    command = [sys.executable, "sample.py", f"--workdir={runs / 'class'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--label is missing" in result.stderr


@pytest.mark.parametrize(
    "options", [["--num=0"], ["--seed=-1"], ["--eta=2"], ["--size=64"], ["--eta=1", "--sampler=plms"], ["--lable=3"]]
)
def test_wrong_arguments_exit_with_2(options, capsys):
    with pytest.raises(SystemExit) as error:
        sample.parse(["--workdir=x", *options])
    assert error.value.code == 2 and options[0].split("=")[0] in capsys.readouterr().err


def test_requests_repeat_and_have_the_models_size(runs, monkeypatch):
    monkeypatch.chdir(runs)
    args = sample.parse(["--workdir=class", "--label=3", "--label=9", "--num=2", "--guidance=3"])
    made = sample._requests(args, ConfigDict(checkpoint.load_config("class")))
    assert [int(r.fields["label"]) for r in made] == [3, 3, 9, 9]
    assert {r.size for r in made} == {(64, 64)}
