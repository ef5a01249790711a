"""The inputs of the page as a request: what is taken, and the sentence for what is missing or wrong."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax import recipes, request
from ldm_jax.errors import Missing, RequestError
from ldm_jax.web import drawing, form

HOW = dict(num=4, seed=3, steps=4, sampler="ddim", eta=0.5, guidance=3)
KINDS = ("ldm", "class", "text", "layout", "semantic", "superres", "inpaint", "hybrid")


@pytest.fixture(scope="module")
def models():
    """{kind: (recipe, what it takes)}"""
    found = {kind: recipes.load(f"quickstart_{kind}:tiny") for kind in KINDS}
    found["vectors"] = recipes.load("rdm_768_ldm16:tiny")
    return {kind: (config, form.form_of(config)) for kind, config in found.items()}


def canvas(array, mode="RGBA"):
    """A drawing as the browser sends it."""
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def painted(size, where, colour=(255, 0, 128, 178)):
    array = np.zeros((*size, 4), np.uint8)
    array[where] = colour
    return canvas(array)


PART = np.s_[4:12, 2:9]
BOXES = [{"box": [0.1, 0.2, 0.7, 0.8], "class": 9}]


def inputs(kind, found):
    size = found.size
    image = np.full((*found.picture_size, 3), 90, np.uint8)
    plan = np.zeros((*size, 4), np.uint8)
    plan[PART] = (*form.colour(7), 255)
    return {
        "ldm": {}, "text": {}, "class": dict(label=5), "layout": dict(layout=json.dumps(BOXES)),
        "semantic": dict(segmentation=canvas(plan), rest=2), "superres": dict(image=image),
        "inpaint": dict(image=image, mask=painted(size, PART), feather=0),
        "hybrid": dict(label=5, segmentation=canvas(plan), rest=255),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_the_model_takes_what_the_page_gives(models, kind):
    config, found = models[kind]
    wanted = found.request(inputs(kind, found) | HOW)
    made = request.resolve(wanted, config, kind, None)
    assert len(made) == 4 and {one.size for one in made} == {found.size}
    assert (wanted.seed, wanted.steps, wanted.eta) == (3, 4, 0.5)
    assert wanted.guidance == (3 if config.conditioner.drop_prob else None)


def test_values_reach_the_request(models):
    text = models["text"][1].request(dict(prompt=" a red circle ") | HOW | dict(guidance=1, sampler="heun"))
    assert (text.prompt, text.guidance, text.eta) == ("a red circle", None, 0.0)
    assert models["layout"][1].request(dict(layout=json.dumps(BOXES)) | HOW).layout == BOXES
    found = models["inpaint"][1]
    hole = found.request(inputs("inpaint", found) | HOW).mask
    assert hole[PART].all() and hole.sum() == 255 * 8 * 7 and found.options == ("image", "feather", "mask")
    found = models["semantic"][1]
    plan = found.request(inputs("semantic", found) | HOW).segmentation
    assert (plan[PART] == 7).all() and (plan == 2).sum() == plan.size - 56


def test_names_of_classes(models, tmp_path):
    assert models["class"][1].classes["label"][9] == models["layout"][1].classes["layout"][9] == "orange square"
    assert models["semantic"][1].classes["segmentation"][0] == "background"
    config = recipes.load("imagenet_ldm4")
    assert form.form_of(config).classes["label"][207] == "class 207"
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    found = form.form_of(config, tmp_path / "names.txt")
    assert found.classes["label"][:3] == ("cat", "dog", "class 2")
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    config.data.update(source="folder", path=str(tmp_path))
    assert form.form_of(config).classes["label"][:3] == ("a", "b", "class 2")
    with pytest.raises(Missing, match="classes="):
        form.form_of(config, tmp_path / "nowhere.txt")


def test_a_run_that_makes_no_images_is_refused():
    with pytest.raises(RequestError, match="'first_stage' makes no images"):
        form.form_of(recipes.load("quickstart_first_stage:tiny"))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("text", dict(prompt="  "), "prompt is empty"),
        ("text", dict(prompt=None), "prompt is empty"),
        ("class", dict(label=None), "choose a class"),
        ("class", dict(label=64), r"classes 0\.\.63"),
        ("layout", dict(layout="[]"), "no box is drawn"),
        ("layout", dict(layout="{"), "did not arrive"),
        ("semantic", dict(segmentation=""), "did not arrive"),
        ("semantic", dict(rest=9), r"classes 0\.\.8"),
        ("superres", dict(image=None), "choose a picture first"),
        ("inpaint", dict(image=None), "choose a picture first"),
        ("inpaint", dict(mask=painted((32, 32), np.s_[:0])), "nothing is painted"),
        ("inpaint", dict(mask=painted((16, 32), PART)), "belongs to another picture"),
        ("inpaint", dict(mask="data:image/png;base64,AAAA"), "did not arrive"),
        ("inpaint", dict(mask="data:image/png;base64,ü"), "did not arrive"),
        ("ldm", dict(num=17), r"makes 1\.\.16 images"),
        ("ldm", dict(num=None), "num: a whole number"),
        ("ldm", dict(seed=-1), "seed=-1 is not in"),
        ("ldm", dict(seed=1.5), "seed=1.5: a whole number"),
        ("ldm", dict(steps=float("inf")), "steps=inf: a whole number"),
        ("ldm", dict(sampler="magic"), "magic"),
    ],
)
def test_what_is_wrong_gets_a_sentence(models, kind, given, message):
    found = models[kind][1]
    start = inputs(kind, found)
    with pytest.raises(RequestError, match=message) as error:
        found.request(start | HOW | given)
    assert len(str(error.value)) < 300


def test_vectors_are_a_file(models, tmp_path):
    config, found = models["vectors"]
    np.save(tmp_path / "v.npy", np.ones(64))
    wanted = found.request(dict(vectors=str(tmp_path / "v.npy")) | HOW)
    assert len(request.resolve(wanted, config, "x", None)) == 4
    (tmp_path / "w.npy").write_text("x")
    for given, message in ((None, "vectors is missing"), (str(tmp_path / "w.npy"), r"w\.npy is not a \.npy file")):
        with pytest.raises(RequestError, match=message):
            found.request(dict(vectors=given) | HOW)


def test_pictures_are_cut_or_kept(models, tmp_path):
    picture = np.zeros((40, 90, 3), np.uint8)
    picture[:, 25:65] = 200
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    found = models["inpaint"][1]
    middle = found.picture(path, cut=True)
    assert middle.shape == (32, 32, 3) and (middle > 190).all()
    np.testing.assert_array_equal(found.picture(path, cut=False), picture)
    small = models["superres"][1]
    assert small.picture(path, cut=True).shape == (*small.picture_size, 3) and small.scale > 1


def test_a_long_strip_is_cut_before_it_is_resized(models, tmp_path, monkeypatch):
    strip = np.zeros((1, 4001, 3), np.uint8)
    strip[:, 2000] = (10, 200, 90)
    Image.fromarray(strip).save(tmp_path / "strip.png")
    sizes, resize = [], form.resize
    monkeypatch.setattr(form, "resize", lambda image, size: sizes.append((image.shape, size)) or resize(image, size))
    made = models["inpaint"][1].picture(tmp_path / "strip.png", cut=True)
    assert sizes == [((1, 1, 3), (32, 32))] and (made == (10, 200, 90)).all()


@pytest.mark.parametrize(
    ("size", "window", "part"),
    [((40, 90), (32, 32), (40, 40)), ((90, 40), (32, 64), (20, 40)), ((65536, 1), (32, 64), (1, 1)),
     ((8, 8), (32, 64), (4, 8)), ((32, 64), (32, 64), (32, 64))],
)  # fmt: skip
def test_the_part_of_the_wanted_proportions(size, window, part):
    assert form.covered(size, window) == part


@pytest.mark.parametrize(("kind", "option"), [("semantic", "segmentation"), ("inpaint", "mask")])
def test_a_drawing_of_another_size_is_not_decoded(models, kind, option, monkeypatch):
    found = models[kind][1]
    given = inputs(kind, found) | HOW | {option: painted((64, 32), PART)}
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("its pixels are read"))
    with pytest.raises(RequestError, match=f"{option}: the drawing (is not one of 32x32|belongs to another)"):
        found.request(given)


def test_bad_uploads_get_a_sentence(models, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    found = models["inpaint"][1]
    for path, cut, message in (
        (None, True, "choose a picture first"),
        ("a.png", True, r"^a\.png is not a picture that can be read \(PNG, JPEG"),
        ("huge.png", True, r"^huge\.png is not .*: it has 9000x9000 pixels"),
        ("large.png", False, r"^large\.png makes an image of 1200x1000 pixels, more than the 1048576"),
    ):
        with pytest.raises(RequestError, match=message):
            found.picture(path and tmp_path / path, cut)
    assert found.picture(tmp_path / "large.png", cut=True).shape == (32, 32, 3)


def test_files_of_the_command(models, tmp_path):
    """They ask for the same as the drawings."""
    for kind in ("inpaint", "layout", "semantic"):
        config, found = models[kind]
        wanted = found.request(inputs(kind, found) | HOW)
        folder = tmp_path / kind
        folder.mkdir()
        paths = form.files_of(wanted, folder)
        again = request.make({path.stem: str(path) for path in paths} | dict(num=1))
        one, other = (request.resolve(asked, config, kind, None)[0].fields for asked in (wanted, again))
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert sorted(path.name for path in (tmp_path / "inpaint").glob("*")) == ["image.png", "mask.png"]


def test_colours_of_classes_differ():
    assert len({form.colour(k) for k in range(255)}) == 255


def test_the_fields_that_are_drawn_on():
    found = drawing.boxes("draw-0", (32, 64), ["<cat>", "dog"])
    assert 'id="draw-0" data-mode="boxes"' in found and 'width="384" height="192"' in found
    assert "&lt;cat&gt;" in found and "<cat>" not in found and found.count("<option") == 2
    picture = np.full((8, 4, 3), 7, np.uint8)
    shown = drawing.hole("draw-1", picture)
    assert 'width="4" height="8" style="width:192px' in shown and "data:image/png;base64," in shown
    large = drawing.shown("draw-2", np.zeros((300, 300, 3), np.uint8))
    assert "data:image/jpeg;base64," in large and "<button" not in large
    assert 'data-mode="map"' in drawing.plan("draw-3", (16, 16), ["a"]) and drawing.SCRIPT.is_file()


def test_nothing_is_asked_twice(models):
    """Every option of a kind has its place in the form."""
    for kind, (config, found) in models.items():
        assert len(set(found.options)) == len(found.options) and set(found.helps) == set(found.options), kind
        assert found.steps <= found.timesteps == config.diffusion.timesteps
    assert models["text"][1].options == ("prompt",) and models["ldm"][1].options == ()
