"""What made an image can be asked for again: the command, the lines of Python, and the settings inside a PNG."""

import dataclasses
import json
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import provenance
from ldm_jax.cli import sample
from ldm_jax.errors import RequestError
from ldm_jax.images import Images, save_png
from ldm_jax.provenance import Model
from ldm_jax.request import SampleRequest, make

MODEL = Model("runs/a b", 400)
PICTURE = Image.new("RGB", (6, 4))
REQUESTS = [
    {},
    dict(prompt='a red star\'s "halo" ü', num=4, steps=20, guidance=5.0, seed=7),
    dict(prompt=["a", "--b"], sampler="heun", spacing="karras", batch=4),
    dict(label=[3, 9], num=2, eta=0.5, first=6, classifier="runs/c", classifier_scale=2.0),
    dict(label=3, guidance=3.0, guidance_rescale=0.7, guidance_interval=(0.5, 2.0)),
    dict(label=3, guidance=3.0, guidance_interval=(0.5, float("inf"))),
    dict(label=3, segmentation="map.png", guidance=(6, 1)),
    dict(label=3, segmentation="map.png", guidance=[np.float64(6.5), np.float32(1)], num=np.int64(2)),
    dict(label=[np.int64(3)], autoguide="runs/small", autoguide_scale=1.5, autoguide_checkpoint=20),
    dict(image="a.png", mask="hole.png", feather=2.5),
    dict(init="a.png", strength=0.4, size=(64, 96), patch=64, stride=32),
    dict(init="a.png", invert=True, guide="b.png", guide_scale=2.0, guide_distance="lpips", lpips_weights="w"),
    dict(interpolate=(1, 2), num=3),
    dict(interpolate=("a.png", "b c.png")),
    dict(layout="boxes.json", vectors="v.npy", segmentation="map.png", prompts="texts.txt"),
]


def plain(request):
    """The fields as values that can be compared: one value is as good as a list of it, a tuple as a list."""
    values = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    values |= {name: [values[name]] for name in ("label", "prompt") if isinstance(values[name], int | str)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


@pytest.mark.parametrize("options", REQUESTS)
def test_command_python_and_json_ask_for_the_same(options, monkeypatch):
    request = make(options)
    command = shlex.split(provenance.command(request, MODEL))
    args = sample.parse(command[2:])
    assert command[:2] == ["python", "sample.py"] and (args.workdir, args.checkpoint) == ("runs/a b", 400)
    assert plain(sample.request_of(args)) == plain(request)
    record = json.loads(json.dumps(provenance.record(request, MODEL), allow_nan=False))
    assert plain(make(record["request"])) == plain(request) and not record["not_kept"]
    asked = {}

    class Loaded:
        def __init__(self, path, checkpoint):
            assert (path, checkpoint) == MODEL[:2]

        def sample(self, **given):
            asked.update(given)
            return Images([])

    monkeypatch.setattr(ldm_jax, "load", Loaded, raising=False)
    code = provenance.python(request, MODEL)
    exec(code, {})
    assert plain(make(asked)) == plain(request) and max(map(len, code.splitlines())) <= provenance.WIDTH


def test_pictures_in_memory_are_files_of_their_options_names():
    array = np.zeros((4, 6), np.uint8)
    request = make(dict(image=PICTURE, mask=array, num=2))
    record = provenance.record(request, MODEL)
    assert record["request"] == {"seed": 0, "num": 2}
    assert record["not_kept"] == {"image": "Image 6x4", "mask": "ndarray uint8 4x6"}
    assert record["command"].endswith("--image=image.png --mask=mask.png")
    assert 'image="image.png"' in provenance.python(request, MODEL)
    boxes = [{"box": [0.0, 0.1, 0.5, 0.6], "class": np.int32(3)}]
    record = provenance.record(make(dict(layout=boxes)), MODEL)
    assert record["request"]["layout"] == [{"box": [0.0, 0.1, 0.5, 0.6], "class": 3}]
    assert "--layout=layout.json" in record["command"]
    ends = make(dict(interpolate=(PICTURE, "b.png")))
    assert provenance.command(ends, MODEL).endswith("--interpolate interpolate_0.png b.png")
    assert "interpolate=('interpolate_0.png', 'b.png')" in provenance.python(ends, MODEL)


@pytest.mark.parametrize(
    "options", [dict(noise=np.zeros((1, 2, 2, 3))), dict(fields={"label": np.zeros(2)}), dict(image=["a.png", "b.png"])]
)
def test_what_no_command_says(options):
    record = provenance.record(make(options), MODEL)
    assert record["command"] is None
    (name,) = options
    assert (f"{name}={name}" if name != "image" else "image=['a.png', 'b.png']") in provenance.python(
        make(options), MODEL
    )


def test_raw_parameters_are_asked_for():
    model, request = Model("runs/x", None, raw=True), SampleRequest()
    assert provenance.command(request, model) == "python sample.py --workdir=runs/x --no-ema --seed=0"
    assert 'ldm_jax.load("runs/x", averaged=False)' in provenance.python(request, model)


@pytest.mark.parametrize("weights", ["averaged", "raw"])
def test_the_code_of_the_documentation_takes_the_same_parameters(weights, monkeypatch):
    model, asked = Model("runs/x", 300, weights == "raw"), []
    record = json.loads(json.dumps(provenance.record(make(dict(seed=5)), model)))
    monkeypatch.setattr(ldm_jax, "read_settings", lambda path: record, raising=False)
    monkeypatch.setattr(ldm_jax, "load", lambda path, **how: asked.append((path, how)) or Loaded(), raising=False)

    class Loaded:
        def sample(self, **given):
            asked.append(given)

    text = (Path(__file__).resolve().parents[1] / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (code,) = [block for block in blocks if "read_settings" in block]
    for lines in (code, textwrap.dedent(provenance.__doc__.split("\n\n")[1])):
        asked.clear()
        exec(lines, {"ldm_jax": ldm_jax, "print": lambda *_: None})
        assert asked == [("runs/x", dict(checkpoint=300, averaged=weights == "averaged")), {"seed": 5}]


def test_a_png_tells_its_settings(tmp_path):
    record = provenance.record(make(dict(prompt="ü a star", num=2)), MODEL)
    texts = {"seed": 0, provenance.KEY: json.dumps(record)}
    paths = Images([np.zeros((4, 4, 3), np.uint8)] * 2, settings=texts).save(tmp_path)
    found = ldm_jax.read_settings(paths[1])
    assert found == record | {"index": 1} and found["program"] == f"ldm_jax {ldm_jax.__version__}"
    save_png(tmp_path / "grid.png", np.zeros((4, 4, 3), np.uint8), texts)
    assert ldm_jax.read_settings(tmp_path / "grid.png") == record


@pytest.mark.parametrize("texts", [{}, {"ldm_jax": "{"}, {"ldm_jax": "[]"}, {"ldm_jax": '{"program": 1}'}])
def test_a_png_without_settings_is_named(tmp_path, texts):
    save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8), texts)
    with pytest.raises(RequestError, match=r"a\.png has no settings: only PNG files that sample\.py"):
        ldm_jax.read_settings(tmp_path / "a.png")


def test_no_picture_has_no_settings(tmp_path):
    (tmp_path / "a.png").write_text("<html>")
    with pytest.raises(RequestError, match=r"a\.png is not a picture that can be read: this is an HTML page"):
        ldm_jax.read_settings(tmp_path / "a.png")
    PICTURE.save(tmp_path / "a.jpg")
    with pytest.raises(RequestError, match="has no settings"):
        ldm_jax.read_settings(tmp_path / "a.jpg")
