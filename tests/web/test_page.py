"""The page in a real Chromium: models of seconds, a visitor who types, draws, paints, uploads and downloads.

pip install 'ldm_jax[web]' playwright; apt-get install chromium
python -m pytest -m slow tests/web/test_page.py
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm_jax
from tests.fast import flags

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
KINDS = ("text", "inpaint", "layout", "semantic", "superres", "class")


@pytest.fixture(scope="module")
def web():
    for package in ("gradio", "playwright"):
        pytest.importorskip(package, reason="pip install 'ldm_jax[web]' playwright")
    from scripts import web_pictures

    web_pictures.chromium()  # FileNotFoundError says how to get one
    return web_pictures


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, trained for four steps; or those in the folder WEB_RUNS."""
    if "WEB_RUNS" in os.environ:
        return Path(os.environ["WEB_RUNS"])
    root = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        train(root / kind, f"quickstart_{kind}:tiny")
    return root


def train(workdir, recipe, *options):
    command = [sys.executable, "train.py", f"--config={recipe}", f"--workdir={workdir}", *options]
    env = os.environ | {"XLA_FLAGS": flags()}
    subprocess.run(command, cwd=ROOT, check=True, env=env, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def url(web, runs):
    os.environ["XLA_FLAGS"] = flags()
    with web.served(*(f"--workdir={kind}" for kind in KINDS), "--run=text", folder=runs) as found:
        yield found


@pytest.fixture
def visiting(web, url):
    with web.visitor(url) as found:
        yield found
        assert found.hosts <= {url.removeprefix("http://"), ""} and not found.problems


def downloaded(visiting, tmp_path):
    """{name: path} of the files that the page gives."""
    links = visiting.page.locator("a[download]:visible")
    found = {}
    for i in range(links.count()):
        with visiting.page.expect_download() as waiting:
            links.nth(i).click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        found[path.name] = path
    return found


def same_by_python(runs, found, path, **pictures):
    """The settings inside the file ask for the same picture again."""
    pipe = ldm_jax.load(runs / found["model"]["path"], checkpoint=found["model"]["step"])
    again = pipe.sample(**found["request"], **pictures)[found["index"]]
    return np.abs(np.asarray(Image.open(path)).astype(int) - again).max() <= 1


def test_a_prompt_becomes_images(web, visiting, runs, tmp_path):
    visiting.choose("text")
    visiting.press()
    assert "prompt is empty" in visiting.told()
    visiting.prompt(web.PROMPT)
    visiting.set("Seed", 7)
    visiting.press()
    assert visiting.made().startswith("4 images, ")
    assert visiting.page.locator(".ldm-images:visible img").count() >= 4
    command = visiting.page.locator(".ldm-command:visible").first.inner_text()
    assert "--seed=7" in command and f"--prompt='{web.PROMPT}'" in command and "sample.py" in command
    assert "ldm_jax.load(" in visiting.page.locator(".ldm-python:visible").first.inner_text()
    files = downloaded(visiting, tmp_path)
    assert len(files) == 4
    path = files["000001_a-large-red-circle-on-a-plain-grey-background.png"]
    found = ldm_jax.read_settings(path)
    assert found["request"]["prompt"] == web.PROMPT and found["request"]["seed"] == 7 and found["index"] == 1
    assert same_by_python(runs, found, path)


def test_a_hole_is_painted_and_filled(web, visiting, runs, tmp_path):
    visiting.choose("inpaint")
    visiting.press()
    assert "choose a picture first" in visiting.told()
    web.give(visiting, web.picture(tmp_path / "given.png"))
    visiting.press()
    assert "nothing is painted" in visiting.told()
    web.paint_hole(visiting)
    visiting.press()
    visiting.made()
    files = downloaded(visiting, tmp_path)
    image, mask = (np.asarray(Image.open(files[f"{name}.png"])) for name in ("image", "mask"))
    made = np.asarray(Image.open(files["000000.png"]))
    assert 0.02 < (mask == 255).mean() < 0.6 and set(np.unique(mask)) == {0, 255}
    assert mask[mask.shape[0] // 2, mask.shape[1] // 2] == 255 and mask[0, 0] == 0
    assert (made[mask == 0] == image[mask == 0]).all() and (made[mask == 255] != image[mask == 255]).any()
    found = ldm_jax.read_settings(files["000000.png"])
    assert set(found["not_kept"]) == {"image", "mask"}
    assert same_by_python(runs, found, files["000000.png"], image=files["image.png"], mask=files["mask.png"])


@pytest.mark.parametrize(("name", "sentence"), [("a", "a.png is not a picture"), ("b", "it has 9000x9000 pixels")])
def test_bad_uploads_get_a_sentence(visiting, tmp_path, name, sentence):
    visiting.choose("inpaint")
    (tmp_path / "a.png").write_text("no picture")
    Image.new("1", (9000, 9000)).save(tmp_path / "b.png")
    visiting.upload(tmp_path / f"{name}.png")
    told = visiting.told()
    assert sentence in told and "Traceback" not in told and str(tmp_path) not in told


def test_boxes_are_drawn(visiting, runs, tmp_path):
    visiting.choose("layout")
    visiting.press()
    assert "no box is drawn" in visiting.told()
    visiting.page.locator(".ldm-draw select:visible").select_option("9")
    visiting.drag((0.1, 0.2), (0.7, 0.8))
    visiting.page.locator(".ldm-draw select:visible").select_option("2")
    visiting.drag((0.9, 0.9), (0.5, 0.5))
    visiting.page.locator(".ldm-draw button:visible", has_text="Undo").click()
    visiting.press()
    visiting.made()
    files = downloaded(visiting, tmp_path)
    (box,) = ldm_jax.read_settings(files["000000.png"])["request"]["layout"]
    assert box["class"] == 9 and np.allclose(box["box"], [0.1, 0.2, 0.7, 0.8], atol=0.01)
    assert files["layout.json"].is_file()


def test_a_map_is_painted(visiting, runs, tmp_path):
    visiting.choose("semantic")
    visiting.page.locator(".ldm-draw select:visible").select_option("3")
    visiting.drag((0.3, 0.3), (0.7, 0.7))
    visiting.press()
    visiting.made()
    painted = np.asarray(Image.open(downloaded(visiting, tmp_path)["segmentation.png"]))
    middle = painted.shape[0] // 2
    assert set(np.unique(painted)) == {0, 3} and painted[middle, middle] == 3 and painted[0, -1] == 0


@pytest.mark.parametrize("kind", ["superres", "class"])
def test_the_other_kinds(web, visiting, runs, tmp_path, kind):
    visiting.choose(kind)
    if kind == "superres":
        web.give(visiting, web.picture(tmp_path / "given.png"))
    visiting.press()
    visiting.made()
    assert "000000_class-0.png" in downloaded(visiting, tmp_path) or kind == "superres"


def test_two_visitors_wait_for_each_other(web, url, runs, visiting):
    visiting.choose("text")
    visiting.prompt("a")
    other = visiting.page.context.browser.new_page()
    second = web.Visitor(other, url)
    second.choose("class")
    visiting.press()
    second.press()
    assert visiting.made().startswith("4 images, ") and second.made().startswith("4 images, ")


def test_a_visitor_stops(visiting):
    visiting.choose("class")
    visiting.set("Steps", 1000)
    visiting.press()
    status = visiting.page.locator(".ldm-status:visible").last
    status.get_by_text("step ").wait_for(timeout=600_000)
    visiting.page.get_by_role("button", name="Stop").locator("visible=true").click()
    status.get_by_text("stopped").wait_for()
    visiting.set("Steps", 2)
    visiting.press()
    assert visiting.made().startswith("4 images, ")


def test_a_training_is_watched(visiting, runs):
    visiting.choose("text, training")
    visiting.page.locator("svg[aria-label=loss]:visible").wait_for()
    assert "step 4 of 4" in visiting.page.locator(".ldm-far:visible").last.inner_text()
    visiting.page.locator(".ldm-pictures:visible img").first.wait_for()
    with (runs / "text" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "time": 0, "loss": 0.5}\n')
    visiting.page.locator(".ldm-far:visible", has_text="step 5 of 4").last.wait_for()
