import numpy as np
import pytest

from ldm_jax.data import layout, shapes
from ldm_jax.data.layout import LayoutCoder, LayoutRules


def thing(box, number=0, **flags):
    return {"box": list(box), "class": number, **flags}


def test_worked_by_hand():
    """PAPER: token of (x, y) = round(89 y) * 90 + round(89 x); class + n_classes * flags; empty 8191; 92 tokens."""
    coder = LayoutCoder(352)
    tokens = coder.encode(
        [thing((0.0, 0.0, 1.0, 1.0), 5), thing((0.25, 0.5, 0.75, 0.9), 7, group=True, inside=True)],
        crop=(0.1, 0.0, 0.9, 1.0),
    )
    assert tokens.dtype == np.int32 and tokens.shape == (92,) == (coder.length,)
    # 89/4 = 22.25 -> 22, 44.5 -> 44 (halves to even), 66.75 -> 67, 80.1 -> 80
    assert tokens[:6].tolist() == [5, 0, 8099, 7 + 352 * 9, 44 * 90 + 22, 80 * 90 + 67]
    assert (tokens[6:90] == 8191).all()
    # 8.9 -> 9 and 80.1 -> 80 along x
    assert tokens[90:].tolist() == [9, 89 * 90 + 80]


def test_there_and_back():
    coder = LayoutCoder(64)
    for index in range(50):
        scene = shapes.draw(0, index, 64)["objects"]
        crop = (0.2, 0.1, 0.9, 0.8)
        objects, back = coder.decode(coder.encode(scene, crop))
        seen = [item for item in scene if layout.clip_box(item["box"], crop)]
        assert [item["class"] for item in objects] == [item["class"] for item in seen]
        for ours, theirs in zip(objects, seen):
            assert np.allclose(ours["box"], theirs["box"], atol=0.5 / 89 + 1e-9)
        assert np.allclose(back, crop, atol=0.5 / 89 + 1e-9)


def test_flags_come_back():
    coder = LayoutCoder(10)
    flags = {"group": True, "depiction": True}
    assert coder.decode(coder.encode([thing((0, 0, 1, 1), 3, **flags, occluded=False)]))[0][0] == {
        "box": [0, 0, 1, 1],
        "class": 3,
        **flags,
    }
    only_group = LayoutCoder(10, flags=("group",))
    assert only_group.encode([thing((0, 0, 1, 1), 3, group=True, inside=True)])[0] == 13


def test_flip_mirrors_boxes_and_crop():
    coder = LayoutCoder(4)
    objects, crop = coder.decode(coder.encode([thing((0.0, 0.2, 0.25, 0.7))], (0.0, 0.0, 0.5, 1.0), flip=True))
    assert np.allclose(objects[0]["box"], (0.75, 0.2, 1.0, 0.7), atol=0.006)
    assert np.allclose(crop, (0.5, 0.0, 1.0, 1.0), atol=0.006)


def test_objects_outside_the_crop_are_left_out():
    coder = LayoutCoder(4)
    objects = [thing((0.0, 0.0, 0.3, 0.3), 0), thing((0.2, 0.2, 0.7, 0.7), 1), thing((0.5, 0.0, 0.6, 1.0), 2)]
    seen, _ = coder.decode(coder.encode(objects, (0.0, 0.0, 0.5, 0.5)))
    assert [item["class"] for item in seen] == [0, 1]
    assert np.allclose(seen[1]["box"], (0.2, 0.2, 0.7, 0.7), atol=0.006)  # whole, in the whole image's coordinates


def test_without_crop_tokens_boxes_are_those_of_the_crop():
    coder = LayoutCoder(4, max_objects=3, crop_tokens=False)
    tokens = coder.encode([thing((0.2, 0.2, 0.7, 0.5), 1), thing((0.0, 0.5, 0.3, 0.6), 2)], (0.25, 0.0, 0.75, 0.5))
    assert tokens.shape == (9,) == (coder.length,)
    objects, crop = coder.decode(tokens)
    assert crop == layout.WHOLE and len(objects) == 1
    assert np.allclose(objects[0]["box"], (0.0, 0.4, 0.9, 1.0), atol=0.006)
    mirrored, _ = coder.decode(coder.encode([thing((0.2, 0.2, 0.7, 0.5), 1)], (0.25, 0.0, 0.75, 0.5), flip=True))
    assert np.allclose(mirrored[0]["box"], (0.1, 0.4, 1.0, 1.0), atol=0.006)


def test_order_is_shuffled_by_the_generator_alone():
    coder = LayoutCoder(10)
    objects = [thing((0, 0, 1, 1), k) for k in range(6)]
    orders = [coder.encode(objects, rng=np.random.default_rng(k))[:18:3].tolist() for k in range(20)]
    assert orders[3] == coder.encode(objects, rng=np.random.default_rng(3))[:18:3].tolist()
    assert len({tuple(order) for order in orders}) > 15 and all(sorted(order) == list(range(6)) for order in orders)
    assert coder.encode(objects)[:18:3].tolist() == list(range(6)) == [item["class"] for item in objects]


def test_too_many_objects():
    coder = LayoutCoder(50, max_objects=4)
    tokens = coder.encode([thing((0, 0, 1, 1), k) for k in range(9)], rng=np.random.default_rng(0))
    assert sorted(tokens[:12:3].tolist()) == [0, 1, 2, 3] and len(tokens) == 14


def test_an_empty_layout():
    coder = LayoutCoder(4)
    tokens = coder.encode([])
    assert (tokens[:90] == 8191).all() and tokens[90:].tolist() == [0, 8099]
    assert coder.decode(tokens) == ([], layout.WHOLE)


def test_impossible_settings_are_refused():
    assert LayoutCoder(511).n_classes == 511  # 16 * 511 = 8176 <= 8191
    with pytest.raises(ValueError, match="512 classes with 4 flags need 8192 tokens"):
        LayoutCoder(512)
    assert LayoutCoder(4095, flags=("group",)).n_classes == 4095
    with pytest.raises(ValueError, match="huge are not among"):
        LayoutCoder(4, flags=("huge",))
    with pytest.raises(ValueError, match="class 9 of an object"):
        LayoutCoder(9).encode([thing((0, 0, 1, 1), 9)])
    with pytest.raises(ValueError, match=r"92 tokens, not \[90\]"):
        LayoutCoder(9).decode(np.zeros(90))


def test_rules():
    small, large = thing((0.5, 0.5, 0.505, 0.51)), thing((0, 0, 0.5, 0.5))
    rules = LayoutRules()
    assert rules.keep([small, large]) is None  # one is left
    assert rules.keep([large, small, large]) == [large, large]
    assert rules.keep([large] * 30) is not None and rules.keep([large] * 31) is None
    assert LayoutRules(min_area=1e-5).keep([small, large]) == [small, large]


def test_drawing_shows_boxes_where_they_are():
    box = thing((0.25, 0.5, 0.75, 1.0), 1)
    picture = layout.draw_layout([box], (200, 200))
    assert picture.shape == (200, 200, 3) and picture.dtype == np.uint8
    drawn = (picture != 255).any(-1)
    rows, columns = np.flatnonzero(drawn[:, 148]), np.flatnonzero(drawn[150:].any(0))
    assert abs(rows[0] - 100) <= 1 and rows[-1] == 199 and abs(columns[0] - 50) <= 1 and abs(columns[-1] - 149) <= 1
    assert drawn[80:99, 50:60].any()  # the name, above
    named = layout.draw_layout([thing((0.9, 0.0, 1.0, 1.0), 0, occluded=True)], (200, 200), ("red star",))
    assert (named[:20, 100:180] != 255).any()  # moved to the left, where it fits
    over = layout.draw_layout([], (20, 30), background=np.full((20, 30, 3), 9, np.uint8), crop=(0, 0, 0.5, 0.5))
    assert (over[15:] == 9).all() and (over[0, 0] == 64).all()
    with pytest.raises(ValueError, match="background is 20x30"):
        layout.draw_layout([], (30, 30), background=np.full((20, 30, 3), 9, np.uint8))
