"""Requests: pictures keep their size, known pixels stay, and mistakes are named."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ldm_jax.conditions import KINDS, class_label, inpaint, layout, semantic, superres, vectors
from ldm_jax.conditions.base import Frame
from ldm_jax.data.layout import LayoutCoder
from ldm_jax.errors import RequestError

RNG = np.random.default_rng(0)


def frame(f, divisor):
    return Frame((16 * f, 16 * f), (16, 16), divisor)


def inpaintings(image, mask, multiple, **more):
    condition = KINDS["inpaint"](ConfigDict(inpaint.section()))
    return condition.requests(dict(image=image, mask=mask, **more), frame(4, multiple // 4), None)


def low_res(image, scale, divisor):
    return KINDS["superres"](ConfigDict(superres.section())).requests({"image": image}, frame(scale, divisor), None)


def segmentations(given, n_classes, multiple):
    condition = KINDS["semantic"](ConfigDict(semantic.section(n_classes)))
    return condition.requests({"segmentation": given}, frame(4, multiple // 4), None)


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def picture(path, height, width):
    return save(path, RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_inpainting_keeps_known_pixels_and_the_size(tmp_path):
    image = picture(tmp_path / "a.png", 50, 70)
    hole = np.zeros((50, 70), np.uint8)
    hole[10:30, 20:60] = 255
    (request,) = inpaintings(image, save(tmp_path / "m.png", hole), 16, feather=2.0)
    assert request.size == (64, 80) and request.fields["mask"].shape == (64, 80, 1)
    masked = request.fields["masked_image"]
    assert (masked[10:30, 20:60] == -1).all() and masked.shape == (64, 80, 3)
    made = np.full((64, 80, 3), 7, np.uint8)
    done, original = request.finish(made), np.asarray(Image.open(image))
    assert done.shape == (50, 70, 3)
    np.testing.assert_array_equal(done[hole == 0], original[hole == 0])
    assert (done[18:22, 30:50] == 7).all()  # well inside the hole nothing of the input is left


def test_inpainting_folders_pair_by_name(tmp_path):
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        picture(tmp_path / "pictures" / f"{name}.png", 16, 16)
        save(tmp_path / "masks" / f"{name}.png", np.full((16, 16), 255, np.uint8))
    assert [r.name for r in inpaintings(tmp_path / "pictures", tmp_path / "masks", 8)] == ["a", "b"]
    (tmp_path / "masks" / "b.png").rename(tmp_path / "masks" / "c.png")
    with pytest.raises(RequestError, match=r"no mask for 1 of 2 pictures: b\.png"):
        inpaintings(tmp_path / "pictures", tmp_path / "masks", 8)


def test_small_pictures_are_padded_and_cut_back(tmp_path):
    (request,) = low_res(picture(tmp_path / "small.png", 10, 12), 4, 8)
    assert request.fields["low_res"].shape == (16, 16, 3) and request.size == (64, 64)
    assert request.finish(np.zeros((64, 64, 3), np.uint8)).shape == (40, 48, 3)


def test_segmentation(tmp_path):
    classes = RNG.integers(0, 4, (20, 20), dtype=np.uint8)
    (request,) = segmentations(save(tmp_path / "s.png", classes), 4, 16)
    np.testing.assert_array_equal(request.fields["segmentation"][:20, :20], classes)
    assert request.size == (32, 32)
    with pytest.raises(RequestError, match=r"class 3; the model has the classes 0\.\.2"):
        segmentations(tmp_path / "s.png", 3, 16)


def test_layout_vectors_labels(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([{"box": [0.1, 0.2, 0.5, 0.9], "class": 3}]))
    coder = LayoutCoder(5)
    (request,) = layout.requests(path, coder)
    objects, _ = coder.decode(request.fields["tokens"])
    assert [item["class"] for item in objects] == [3]
    np.save(tmp_path / "v.npy", np.ones((2, 7)))
    (request,) = vectors.requests(tmp_path / "v.npy", 3, 7)
    assert request.fields["vectors"].sum(-1).tolist() == [7, 7, 0]
    assert [r.fields["label"] for r in class_label.requests([4, 0], 5)] == [4, 0]


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: class_label.requests([5], 5), r"label=5: the model has the classes 0\.\.4"),
        (lambda p: layout.requests(p / "none.json", LayoutCoder(5)), "does not exist"),
        (lambda p: layout.requests(p, LayoutCoder(5)), r"holds none.*\.json"),
        (lambda p: layout.requests(write(p / "b.json", "{"), LayoutCoder(5)), "a layout is a JSON list"),
        (lambda p: layout.requests(write(p / "b.json", '[{"box": [0, 0, 2, 1], "class": 1}]'), LayoutCoder(5)),
         r"box \[0.0, 0.0, 2.0, 1.0\] is not"),
        (lambda p: layout.requests(write(p / "b.json", '[{"box": [0, 0, 1, 1], "class": 9}]'), LayoutCoder(5)),
         r"class 9 of an object is not in 0\.\.4"),
        (lambda p: segmentations(picture(p / "c.png", 8, 8), 3, 8), "is a picture in colours"),
        (lambda p: low_res(write(p / "x.png", "no"), 4, 8), "is not a picture that can be read"),
        (lambda p: inpaintings(picture(p / "a.png", 8, 8), save(p / "m.png", np.ones((9, 8), np.uint8)), 8),
         "is 8x9 pixels, its picture 8x8"),
        (lambda p: inpaintings(picture(p / "a.png", 8, 8), save(p / "m.png", np.zeros((8, 8), np.uint8)), 8),
         "marks nothing"),
        (lambda p: vectors.requests(write(p / "v.npy", "x"), 3, 7), r"is not a \.npy file"),
        (lambda p: (np.save(p / "v.npy", np.ones(6)), vectors.requests(p / "v.npy", 3, 7)), "up to 3 vectors of 7"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, make, message):
    with pytest.raises(RequestError, match=message):
        make(tmp_path)


def test_arrays_and_pil_images_do_as_files(tmp_path):
    path = picture(tmp_path / "a.png", 16, 16)
    array = np.asarray(Image.open(path))
    hole = np.zeros((16, 16), np.uint8)
    hole[4:9] = 255
    save(tmp_path / "m.png", hole)
    (from_file,) = inpaintings(path, tmp_path / "m.png", 16)
    for image, mask in ((array, hole), (Image.fromarray(array), Image.fromarray(hole)), (array[None], [hole > 0])):
        (made,) = inpaintings(image, mask, 16)
        for name, field in from_file.fields.items():
            np.testing.assert_array_equal(made.fields[name], field)
    assert len(low_res(np.zeros((3, 8, 8, 3), np.uint8), 4, 8)) == 3
    (made,) = segmentations(np.full((16, 16), 200, np.int64), 300, 16)
    assert (made.fields["segmentation"] == 200).all()
    (made,) = layout.requests([{"box": [0, 0, 0.5, 0.5], "class": 1}], LayoutCoder(5))
    assert made.fields["tokens"].shape == (LayoutCoder(5).length,)
    assert len(layout.requests([[{"box": [0, 0, 0.5, 0.5], "class": 1}], []], LayoutCoder(5))) == 2
    assert len(class_label.requests(np.int64(3), 5)) == 1
    with pytest.raises(RequestError, match="uint8 arrays"):
        low_res(np.zeros((8, 8, 3), np.float32), 4, 8)
