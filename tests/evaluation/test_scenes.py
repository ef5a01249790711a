"""The reader of scenes against what was drawn."""

import numpy as np
import pytest

from ldm_jax.data import shapes
from ldm_jax.evaluation import scenes

SCENES = [shapes.draw(1, i, 32, simple=True) for i in range(60)]


def names(scene):
    return [shapes.CLASS_NAMES[item["class"]] for item in scene["objects"]]


def test_reads_what_was_drawn():
    """At 32 px touching shapes of like colours merge: a few per cent."""
    assert np.mean([scenes.main_is(s["image"], names(s)[0]) for s in SCENES]) >= 0.95
    assert np.mean([scenes.all_there(s["image"], names(s)) for s in SCENES]) >= 0.9
    hits = [scenes.in_place(s["image"], s["objects"], shapes.CLASS_NAMES) for s in SCENES]
    assert np.mean(np.concatenate(hits)) >= 0.9
    assert np.mean([scenes.segmentation(s["image"]) == s["segmentation"] for s in SCENES]) >= 0.97


def test_is_not_fooled_by_another_scene():
    others = SCENES[1:] + SCENES[:1]
    assert np.mean([scenes.main_is(o["image"], names(s)[0]) for s, o in zip(SCENES, others)]) < 0.15
    assert np.mean([scenes.all_there(o["image"], names(s)) for s, o in zip(SCENES, others)]) < 0.15
    hits = [scenes.in_place(o["image"], s["objects"], shapes.CLASS_NAMES) for s, o in zip(SCENES, others)]
    assert np.mean(np.concatenate(hits)) < 0.25


@pytest.mark.parametrize("image", [np.full((32, 32, 3), 128, np.uint8),
                                   np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)])  # fmt: skip
def test_no_shape_in_grey_or_noise(image):
    assert not scenes.main_is(image, "red circle")
    assert not any(shape.overlap > 0.7 for shape in scenes.read(image))


def test_a_shape_serves_one_box():
    scene = next(s for s in SCENES if len(s["objects"]) == 1)
    assert scenes.in_place(scene["image"], scene["objects"] * 2, shapes.CLASS_NAMES) == [True, False]
    assert not scenes.all_there(scene["image"], names(scene) * 2)


def test_touching_shapes_are_told_apart():
    image = np.full((32, 32, 3), 128, np.uint8)
    image[8:24, 2:16] = shapes.COLOURS["red"]
    image[8:24, 16:30] = shapes.COLOURS["blue"]
    assert sorted(shape.name for shape in scenes.read(image)) == ["blue square", "red square"]
