import numpy as np
import pytest

from ldm_jax.data import shapes


def test_a_scene_depends_on_seed_and_index_alone():
    first = shapes.draw(3, 5, 64)
    shapes.draw(3, 6, 64)
    again = shapes.draw(3, 5, 64)
    assert np.array_equal(first["image"], again["image"]) and first["text"] == again["text"]
    assert not np.array_equal(first["image"], shapes.draw(3, 6, 64)["image"])
    assert not np.array_equal(first["image"], shapes.draw(4, 5, 64)["image"])


@pytest.mark.parametrize("size", [32, 100, 512])
def test_any_size_shows_the_same_scene(size):
    scene, reference = shapes.draw(0, 7, size), shapes.draw(0, 7, 64)
    assert scene["image"].shape == (size, size, 3) and scene["image"].dtype == np.uint8
    assert scene["text"] == reference["text"]
    for ours, theirs in zip(scene["objects"], reference["objects"]):
        assert np.allclose(ours["box"], theirs["box"], atol=1.5 / min(size, 64))


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="not 16"):
        shapes.draw(0, 0, 16)


def test_label_caption_boxes_and_segmentation_agree():
    for index in range(300):
        scene = shapes.draw(1, index, 64)
        main = scene["objects"][0]
        colour, kind = shapes.CLASS_NAMES[main["class"]].split()
        assert scene["label"] == main["class"]
        assert scene["text"].startswith(f"a large {colour} {kind}")
        x0, y0, x1, y1 = main["box"]
        # A crescent or a heart is narrower than its circumscribed circle.
        assert 0.2 <= max(x1 - x0, y1 - y0) <= 0.72
        inside_a_box = np.zeros((64, 64), bool)
        kinds = set()
        for item in scene["objects"]:
            box = np.asarray(item["box"])
            assert (box >= 0).all() and (box <= 1).all()
            left, top, right, bottom = np.rint(box * 64).astype(int)
            here = 1 + item["class"] // len(shapes.COLOURS)
            assert (scene["segmentation"][top:bottom, left:right] == here).sum() > 10  # no shape is hidden
            assert shapes.CLASS_NAMES[item["class"]] in scene["text"]
            inside_a_box[top:bottom, left:right] = True
            kinds.add(here)
        assert set(np.unique(scene["segmentation"])) == {0} | kinds
        assert not scene["segmentation"][~inside_a_box].any()


def test_pixels_have_the_colour_of_their_class():
    colours = np.asarray(list(shapes.COLOURS.values()), np.float32)
    for index in range(50):
        scene = shapes.draw(2, index, 128)
        if len(scene["objects"]) > 1:
            continue
        shown = np.median(scene["image"][scene["segmentation"] > 0], 0)
        assert np.argmin(np.abs(colours - shown).sum(-1)) == scene["label"] % len(colours)


def test_every_shape_fits_its_circle():
    # A shape that leaves its circumscribed circle would be cut at its box.
    v, u = np.meshgrid(np.linspace(-1.5, 1.5, 301), np.linspace(-1.5, 1.5, 301), indexing="ij")
    for kind, distance in shapes.KINDS.items():
        inside = distance(u, v) <= 0
        assert np.hypot(u, v)[inside].max() <= 1.02, kind
        assert inside.sum() > 3000, kind


def test_all_classes_and_counts_appear():
    scenes = [shapes.draw(0, index, 32) for index in range(1500)]
    assert len({scene["label"] for scene in scenes}) == len(shapes.CLASS_NAMES) == 64
    assert {len(scene["objects"]) for scene in scenes} == {1, 2, 3, 4}


def test_simple_scenes_are_simpler():
    for index in range(40):
        scene = shapes.draw(0, index, 64, simple=True)
        assert "striped" not in scene["text"] and "checkered" not in scene["text"]
        assert 1 <= len(scene["objects"]) <= 2
        x0, y0, x1, y1 = scene["objects"][0]["box"]
        assert max(x1 - x0, y1 - y0) > 0.35
        if len(scene["objects"]) == 1 and "square" in scene["text"]:  # upright: it fills its box but for the edges
            assert abs((x1 - x0) * (y1 - y0) * 64**2 - (scene["segmentation"] == 2).sum()) <= 64
