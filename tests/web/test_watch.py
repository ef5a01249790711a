"""What a page shows of a run that is training."""

import json
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from ldm_jax import config_file, recipes
from ldm_jax.errors import Missing
from ldm_jax.web import watch


def write(run, lines, tail=""):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def test_lines_that_are_not_whole_are_left_out(tmp_path):
    assert watch.read(tmp_path) == []
    write(tmp_path, [{"step": 1, "loss": 2.0}, {"loss": 1.0}], 'null\n{"step": 2, "lo')
    assert watch.read(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_how_far_it_is(tmp_path):
    assert watch.told(tmp_path, []) == "no numbers yet"
    lines = [{"step": 300, "time": 1000.0, "loss": 1.0}]
    assert watch.told(tmp_path, lines, now=1075.0) == "step 300, 1m15s ago"
    config_file.save(tmp_path, recipes.load("quickstart_ldm:tiny").to_dict())
    assert watch.told(tmp_path, lines, now=1075.0) == "step 300 of 4, 1m15s ago"


def test_validation_is_beside_training_and_loss_is_first():
    lines = [{"step": k, "time": k, "grad_norm": 1.0, "loss": float(k)} for k in range(1, 1001)]
    lines += [{"step": 1000, "time": 0, "val_loss": 7.0, "val_x": float("nan"), "note": "text"}]
    panels = watch.curves(lines)
    assert list(panels) == ["loss", "grad_norm"] and list(panels["loss"]) == ["loss", "val_loss"]
    curve = panels["loss"]["loss"]
    assert len(curve) <= watch.POINTS and curve[0] == (2.5, 2.5) and panels["loss"]["val_loss"] == [(1000.0, 7.0)]


def test_curves_lie_in_their_field():
    lines = [{"step": k, "lo<ss": v} for k, v in ((0, 4.0), (50, 1.0), (100, 2.0))] + [{"step": 7, "flat": 3.0}]
    page = ET.fromstring(watch.drawn(watch.curves(lines)))
    assert [svg.get("aria-label") for svg in page] == ["flat", "lo<ss"]
    (line,) = page[1].iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    right, bottom = watch.WIDTH - watch.RIGHT, watch.HEIGHT - watch.BOTTOM
    assert points[0] == (watch.LEFT, watch.TOP) and points[1][1] == bottom and points[2][0] == right
    assert len(list(page[1].iter("circle"))) == 3


def test_the_newest_pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    names = ("samples_0000100", "samples_0000200", "reconstructions_0000100", "samples_0000300.tmp")
    for name in names:
        Image.new("RGB", (2, 2)).save(tmp_path / "pictures" / f"{name}.png")
    assert [(path.name, text) for path, text in watch.pictures(tmp_path)] == [
        ("reconstructions_0000100.png", "reconstructions, step 100"),
        ("samples_0000200.png", "samples, step 200"),
    ]
    assert watch.pictures(tmp_path / "nowhere") == []


def test_visitors_see_names_not_paths(tmp_path):
    one, two, other = "/secret/runs/text", "runs/inpaint/", "/elsewhere/text"
    assert watch.names_of([one, two, one]) == {one: "text", two: "inpaint"}
    assert watch.names_of([one, two, other]) == {one: one, two: "inpaint", other: other}
    assert watch.names_of(["/", str(tmp_path)]) == {"/": "/", str(tmp_path): tmp_path.name}


def test_a_run_that_has_not_begun_can_be_watched(tmp_path):
    watch.check(tmp_path)
    assert watch.read(tmp_path) == [] and watch.drawn(watch.curves([])).count("<svg") == 0
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        with pytest.raises(Missing, match=rf"run=.*{name} is no directory: give the --workdir"):
            watch.check(tmp_path / name)
