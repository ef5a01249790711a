"""What sample.py refuses, and how: one paragraph that says what the model takes; and what it makes of a request."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ldm_jax import checkpoint, config_file, pipeline, recipes, request
from ldm_jax.cli import sample
from ldm_jax.conditions import class_label, hybrid, inpaint, layout
from ldm_jax.errors import Missing, RequestError
from ldm_jax.recipes import laptop, sections
from ldm_jax.training import setup

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "none": "celeba_ldm4", "class": "imagenet_ldm4", "class without null": "imagenet_ldm8", "text": "text2img_ldm8",
    "layout": "openimages_layout_ldm4", "semantic": "landscapes_semantic_ldm4", "superres": "imagenet_superres_ldm4",
    "inpaint": "places_inpainting_ldm4", "vectors": "rdm_768_ldm16", "hybrid": "quickstart_hybrid",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories that hold nothing but a config.json, and some pictures beside them."""
    root = tmp_path_factory.mktemp("runs")
    for name, recipe in MODELS.items():
        config = recipes.load(f"{recipe}:tiny")
        config_file.save(root / name, config.to_dict())
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(root / "picture.png")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(root / "white.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "black.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / "small.png")
    (root / "folder").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(root / "folder" / f"{name}.png")
    (root / "empty.txt").write_text("\n")
    return root


WRONG = [
    ("none", ["--init=nowhere.png"], "does not exist"),
    ("none", ["--interpolate", "picture.png", "small.png"], "one size are needed, these are 32x32 and 64x64"),
    ("none", ["--guide=picture.png", "--size=32x32"], "is 64x64, the image 32x32"),
    ("none", ["--guide=small.png", "--size=64x96"], "must have its proportions"),
    ("none", ["--guide=folder"], "holds 2 pictures, one is needed"),
    ("none", ["--patch=40"], "patches that are multiples of 32"),
    ("none", ["--patch=32", "--stride=6"], "strides that are multiples of 4"),
    ("semantic", ["--segmentation=black.png", "--init=small.png"], "32x32 and 64x64"),
    ("none", ["--label=1"], "takes no condition"),
    ("none", ["--prompt=x"], "--prompt means nothing here"),
    ("none", ["--guidance=2"], "drop_prob=0"),
    ("none", ["--size=63x64"], "63x64 pixels do not divide"),
    ("none", ["--size=36x64"], "multiples of 32"),
    ("none", ["--feather=2"], "--feather means nothing"),
    ("class", [], "--label is missing"),
    ("class", ["--label=64"], r"classes 0\.\.63"),
    ("class", ["--prompt=a dog"], "takes label"),
    ("class without null", ["--label=1", "--guidance=3"], "drop_prob=0"),
    ("text", [], "--prompt or prompts is missing"),
    ("text", ["--prompts=empty.txt"], "has no prompts"),
    ("text", ["--prompts=nowhere.txt"], "nowhere.txt"),
    ("layout", ["--layout=nowhere.json"], "does not exist"),
    ("layout", ["--layout=picture.png"], "a layout is a JSON list"),
    ("semantic", ["--segmentation=picture.png"], "picture in colours"),
    ("semantic", ["--segmentation=black.png", "--size=64x128"], "--size=64x128 means nothing"),
    ("superres", ["--mask=white.png"], "takes image"),
    ("superres", ["--image=empty.txt"], "not a picture"),
    ("inpaint", ["--image=picture.png"], "--mask is missing"),
    ("inpaint", ["--mask=white.png"], "--image is missing"),
    ("inpaint", ["--image=picture.png", "--mask=black.png"], "marks nothing"),
    ("vectors", ["--vectors=picture.png"], r"not a \.npy"),
    (
        "hybrid",
        ["--label=3", "--segmentation=black.png", "--guidance", "2", "5"],
        r"--guidance=2 5 has a scale for each of "
        r"2 .*drop_each=0\.05.* hybrid has class, semantic and drop_each=0\.0",
    ),
    ("class", ["--label=3", "--guidance", "2", "5"], r"a model of so many .* class has class and drop_each=0\.0"),
    ("hybrid", [], "--label is missing: .* takes label and segmentation"),
    ("hybrid", ["--label=3"], "--segmentation is missing"),
    ("hybrid", ["--label=3", "--prompt=x", "--segmentation=black.png"], "--prompt means nothing"),
]


@pytest.mark.parametrize(("model", "options", "message"), WRONG)
def test_wrong_requests_are_refused(runs, monkeypatch, model, options, message):
    monkeypatch.chdir(runs)
    with pytest.raises(RequestError) as error:
        requests_of([f"--workdir={model}", *options])
    assert re.search(message, sample.as_flag(str(error.value))) and len(str(error.value).splitlines()) <= 3


def requests_of(argv):
    """One `Asked` an image, of these options of sample.py."""
    args = sample.parse(argv)
    config = ConfigDict(config_file.load(args.workdir))
    return request.resolve(sample.request_of(args), config, args.workdir, Path(args.workdir) / "tokenizer")


def test_a_refusal_is_one_paragraph_and_exit_code_2(runs):
    command = [sys.executable, "sample.py", f"--workdir={runs / 'class'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "--label is missing" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength=0.5"], "--strength belongs to init"),
        (["--guide-scale=2"], "--guide-scale belongs to guide"),
        (["--guide-distance=lpips"], "--guide-distance belongs to guide"),
        (["--stride=32"], "--stride belongs to patch"),
        (["--init=a.png", "--strength=0"], "must lie above 0"),
        (["--init=a.png", "--strength=1.5"], "at most at 1"),
        (["--init=a.png", "--interpolate", "1", "2"], "give one"),
        (["--init=a.png", "--invert", "--eta=1"], "--invert needs a sampler that draws no noise"),
        (["--interpolate", "1", "2", "--sampler=ddpm"], "--interpolate needs a sampler that draws no noise"),
        (["--interpolate", "1", "2", "--num=1"], "at least 2"),
        (["--interpolate", "1", "99999999999"], "is not in 0..2147483647"),
        (["--patch=64", "--stride=96"], "leaves gaps"),
    ],
)
def test_editing_options_that_do_not_fit(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        sample.main(["--workdir=x", *options])
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--num=0"], ["--seed=-1"], ["--eta=2"], ["--size=64"], ["--eta=1", "--sampler=plms"], ["--lable=3"]]
)
def test_wrong_arguments_exit_with_2(options, capsys):
    with pytest.raises(SystemExit) as error:
        sample.main(["--workdir=x", *options])
    assert error.value.code == 2 and options[0].split("=")[0] in capsys.readouterr().err


def test_requests_repeat_and_have_the_models_size(runs, monkeypatch):
    monkeypatch.chdir(runs)
    made = requests_of(["--workdir=class", "--label=3", "--label=9", "--num=2", "--guidance=3"])
    assert [int(r.fields["label"]) for r in made] == [3, 3, 9, 9]
    assert {r.size for r in made} == {(64, 64)}


def test_hybrids_join_every_label_with_every_map(runs, monkeypatch):
    monkeypatch.chdir(runs)
    (runs / "maps").mkdir()
    for name, shape in (("m", (50, 70)), ("n", (32, 32))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(runs / "maps" / f"{name}.png")
    made = requests_of(["--workdir=hybrid", "--label=3", "--label=9", "--segmentation=maps", "--guidance=2"])
    assert [r.name for r in made] == ["class 3 m", "class 3 n", "class 9 m", "class 9 n"]
    assert {r.size for r in made} == {(56, 72), (32, 32)} and made[2].finish(np.zeros((56, 72, 3))).shape == (50, 70, 3)
    assert made[3].fields["label"] == 9 and made[3].fields["segmentation"].shape == (32, 32)


def test_layouts_in_patches_get_crop_tokens(runs, monkeypatch):
    """What LayoutCoder writes for the patch; the model's image has 128 pixels, f is 4."""
    monkeypatch.chdir(runs)
    (runs / "boxes.json").write_text('[{"box": [0.1, 0.2, 0.6, 0.9], "class": 4}]')
    config = ConfigDict(config_file.load("layout"))
    (whole,) = requests_of(["--workdir=layout", "--layout=boxes.json"])
    assert "crop_tokens" not in whole.fields
    asked = ["--workdir=layout", "--layout=boxes.json", "--size=64x128", "--patch=64"]
    (asked_for,) = requests_of(asked)
    coder = layout.layout_coder(config.conditioner)
    assert asked_for.fields["crop_tokens"].shape == (3, 2)
    assert asked_for.fields["crop_tokens"][1].tolist() == coder.encode([], crop=(0.25, 0.0, 0.75, 1.0))[-2:].tolist()


def test_pictures_to_start_from_join_every_condition(runs, monkeypatch):
    """Each label with each picture, at the picture's size; it is padded for the networks and cut back at the end."""
    monkeypatch.chdir(runs)
    made = requests_of(["--workdir=class", "--label=3", "--label=9", "--init=folder"])
    assert [r.name for r in made] == ["class 3 a", "class 3 b", "class 9 a", "class 9 b"]
    assert {r.size for r in made} == {(64, 96)} and made[0].fields["pictures"].shape == (1, 64, 96, 3)
    assert made[0].finish(np.zeros((64, 96, 3))).shape == (50, 70, 3)
    made = requests_of(["--workdir=none", "--interpolate", "picture.png", "small.png", "--size=32x32"])
    assert len(made) == 8 and made[0].fields["pictures"].shape == (2, 32, 32, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory on pixels with a UNet of zeros, which as v is exact for standard normal pixels."""
    config = recipes.load("quickstart_ldm:tiny")
    config = config.unlock()
    config.first_stage.kind = "identity"
    config.unet.update(out_channels=3, channel_mult=(1,), attention_downsamples=())
    return without_weights(tmp_path_factory.mktemp("run"), config)


def without_weights(workdir, config):
    config_file.save(workdir, config.to_dict())
    state, frozen = setup.abstract_run(config)
    assert config.diffusion.prediction == "v" and not frozen["first_stage"]
    checkpoint.save_from_numpy(workdir, 0, jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state))
    checkpoint.save_tree(workdir / "frozen", {"first_stage": {}, "latent_scale": np.float32(1.0)})
    return workdir


def test_editing_from_a_checkpoint_to_pictures(run, tmp_path, monkeypatch, capsys):
    """Interpolated seeds end in those seeds' own pictures, interpolated (inverted) pictures in themselves; the less
    strength, the more of a picture is kept; one patch changes nothing; a guide is followed."""

    monkeypatch.setattr(pipeline, "load", functools.cache(pipeline.load))  # compiled once

    def made(name, *options):
        out = sample.run(sample.parse([f"--workdir={run}", f"--out={tmp_path / name}", "--steps=5", *options]))
        return [np.asarray(Image.open(p)).astype(int) for p in sorted(out.glob("[0-9]*.png"))]

    def apart(one, other):
        return np.abs(one - other).mean()

    (zero,), (five,) = made("zero", "--num=1"), made("five", "--num=1", "--seed=5")
    path = made("path", "--interpolate", "0", "5", "--num=3")
    assert apart(path[0], zero) < 1 and apart(path[2], five) < 1 and apart(path[1], zero) > 10
    picture, other = (tmp_path / name / "000000.png" for name in ("zero", "five"))
    path = made("pictures", "--interpolate", str(picture), str(other), "--num=3", "--steps=10")
    assert apart(path[0], zero) < 2 and apart(path[2], five) < 2
    init = (f"--init={picture}", "--seed=1")
    (little,), (much,) = made("little", *init, "--strength=0.2"), made("much", *init, "--strength=0.9")
    assert 1 < 1.5 * apart(little, zero) < apart(much, zero)
    (patched,) = made("patched", *init, "--strength=0.2", "--patch=64", "--stride=32")
    np.testing.assert_array_equal(patched, little)
    (guided,) = made("guided", "--num=1", f"--guide={other}")
    assert apart(guided, five) < 0.8 * apart(zero, five)
    rates = re.findall(r"([-0-9.e+]+) images/s, ([-0-9]+) s left", capsys.readouterr().out)
    assert len(rates) >= 8 and all(float(rate) > 0 <= float(left) for rate, left in rates)
    texts = Image.open(next((tmp_path / "little").glob("0*.png"))).text
    assert texts["strength"] == "0.2" and texts["init"] == str(picture)


@pytest.fixture(scope="module")
def filling(tmp_path_factory):
    """As `run`, but an inpainting model that is told a class as well, a hybrid."""
    both = hybrid.section(class_label.section(64, 32, drop_prob=0.1), inpaint.section(), drop_prob=0.1)
    config = sections.finish(laptop.quickstart(both), "tiny").unlock()
    config.first_stage.kind = "identity"
    config.unet.update(out_channels=3, channel_mult=(1,), attention_downsamples=())
    return without_weights(tmp_path_factory.mktemp("filling"), config)


def test_filling_in_patches_from_a_picture(filling, tmp_path):
    """The known pixels are the picture's own, in patches or not; the hole starts from --init; patches change little
    (nothing here, but for rounding, as a UNet of zeros sees single pixels)."""
    rng = np.random.default_rng(0)
    known, start = (rng.integers(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(2))
    hole = np.zeros((40, 48), np.uint8)
    hole[8:30, 5:40] = 255
    for name, array in (("known", known), ("start", start), ("hole", hole)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")

    def made(name, *options):
        asked = [f"--{k}={tmp_path / v}.png" for k, v in (("image", "known"), ("mask", "hole"), ("init", "start"))]
        asked += [f"--workdir={filling}", f"--out={tmp_path / name}", "--steps=10", "--strength=0.1", "--label=3"]
        out = sample.run(sample.parse([*asked, *options]))
        return np.asarray(Image.open(out / "000000_class-3-known-start.png")).astype(int)

    whole, patched = made("whole"), made("patched", "--patch=16", "--stride=8")
    assert np.abs(whole - patched).max() <= 1
    np.testing.assert_array_equal(patched[hole == 0], known[hole == 0])
    assert np.abs(patched - start)[hole > 0].mean() < 0.5 * np.abs(patched - known)[hole > 0].mean()


def test_a_folder_of_pictures_of_two_sizes(filling, tmp_path):
    sizes = {"a": (16, 16), "b": (24, 40), "c": (16, 16)}
    for name, size in sizes.items():
        for folder, array in (("pictures", np.full((*size, 3), 90, np.uint8)), ("holes", np.zeros(size, np.uint8))):
            array[4:8, 4:8] = 255
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"{name}.png")
    asked = [f"--image={tmp_path / 'pictures'}", f"--mask={tmp_path / 'holes'}", f"--out={tmp_path / 'out'}"]
    out = sample.run(sample.parse([f"--workdir={filling}", "--steps=2", "--label=3", *asked]))
    for i, (name, size) in enumerate(sizes.items()):
        made = np.asarray(Image.open(out / f"{i:06d}_class-3-{name}.png"))
        assert made.shape == (*size, 3) and (made[8:] == 90).all()


def test_lpips_guides_with_weights_alone(run, tmp_path):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "guide.png")
    args = sample.parse([f"--workdir={run}", f"--guide={tmp_path / 'guide.png'}", "--guide-distance=lpips_alex",
                         f"--lpips-weights={tmp_path}"])  # fmt: skip
    with pytest.raises(Missing, match=r"(?s)lpips_alex.*make_lpips_weights\.py --net=alex.*guide_distance=l2"):
        sample.run(args)
