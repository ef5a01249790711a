import pickle

import numpy as np
import pytest

from ldm_jax.conditions.class_label import Label
from ldm_jax.conditions.inpaint import Masked
from ldm_jax.conditions.layout import LayoutTokens
from ldm_jax.conditions.semantic import Segmentation
from ldm_jax.conditions.superres import Degraded
from ldm_jax.conditions.text import Tokens
from ldm_jax.data import batches, degradation, tokenizers
from ldm_jax.data.fields import WithFields
from ldm_jax.data.layout import LayoutCoder, LayoutRules
from ldm_jax.data.shapes import CLASS_NAMES, SEGMENTATION_NAMES
from ldm_jax.data.sources import FilteredSource, ShapesSource
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.images import to_uint8
from tests.data_tools import batch_at

SOURCE = ShapesSource(64, 40)
MOVING = ImageTransform(32, resize="square", flip=True)


def one(field, transform=MOVING, k=0, source=SOURCE):
    return WithFields(transform, (field,))(source[k], np.random.default_rng(k))


def batch(*fields, transform=MOVING, step=3):
    return batch_at(SOURCE, WithFields(transform, fields), 8, step, seed=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tokenizers.train_wordpiece(tokenizers.captions(SOURCE), 200, tmp_path_factory.mktemp("words"))
    return tokenizers.TextTokenizer(folder, 40)


def test_the_image_is_the_one_without_fields():
    plain = batch_at(SOURCE, MOVING, 8, 3, seed=1)["image"]
    for fields in ((), (Degraded("bsr"),), (Masked(), Segmentation(9))):
        assert np.array_equal(batch(*fields)["image"], plain)


def test_batches_are_a_function_of_seed_and_step(tokenizer):
    fields = (Label(), Tokens(tokenizer, mask=True), Segmentation(9), Degraded("bsr"), Masked())
    first, again, other = batch(*fields), batch(*fields), batch(*fields, step=4)
    assert first.keys() == {"image", "label", "tokens", "token_mask", "segmentation", "low_res", "mask", "masked_image"}
    for key, value in first.items():
        assert np.array_equal(value, again[key]) and not np.array_equal(value, other[key]), key
    stream = batches.batches(SOURCE, WithFields(MOVING, fields), 8, seed=1, start_step=3)
    assert all(np.array_equal(value, first[key]) for key, value in next(stream).items())
    stream.close()


def test_shapes_and_types(tokenizer):
    coder = LayoutCoder(len(CLASS_NAMES))
    out = batch(Label(), LayoutTokens(coder), Segmentation(9), Degraded(), Masked("thick_256"))
    expected = {
        "image": ((8, 32, 32, 3), np.float32),
        "label": ((8,), np.int32),
        "tokens": ((8, 92), np.int32),
        "segmentation": ((8, 32, 32), np.int32),
        "low_res": ((8, 8, 8, 3), np.float32),
        "mask": ((8, 32, 32, 1), np.float32),
        "masked_image": ((8, 32, 32, 3), np.float32),
    }
    assert {key: (value.shape, value.dtype) for key, value in out.items()} == expected
    tokens = batch(Tokens(tokenizer))
    assert tokens.keys() == {"image", "tokens"} and tokens["tokens"].shape == (8, 40)


def test_masked_images_are_black_in_the_hole_and_untouched_elsewhere():
    out = batch(Masked())
    hole = np.broadcast_to(out["mask"] == 1, out["image"].shape)
    assert set(np.unique(out["mask"])) == {0, 1}
    assert (out["masked_image"][hole] == -1).all()
    assert np.array_equal(out["masked_image"][~hole], out["image"][~hole])


def test_given_masks_follow_the_image():
    example = SOURCE[0]
    example["mask"] = (example["segmentation"] > 0).astype(np.uint8)
    transform = WithFields(MOVING, (Masked("given"), Segmentation(9)))
    for k in range(5):
        out = transform(example, np.random.default_rng(k))
        assert np.array_equal(out["mask"][..., 0] == 1, out["segmentation"] > 0)


def test_low_resolution_is_made_from_the_placed_image():
    for kind in degradation.KINDS:
        out = batch(Degraded(kind), transform=ImageTransform(64, resize="square", flip=True))
        assert np.abs(out["low_res"]).max() <= 1
        blocks = out["image"].reshape(8, 16, 4, 16, 4, 3).mean((2, 4))
        assert np.corrcoef(blocks.ravel(), out["low_res"].ravel())[0, 1] > 0.8, kind
    assert np.array_equal(
        to_uint8(one(Degraded(), k=2)["low_res"]),
        degradation.degrade(np.random.default_rng(), to_uint8(one(Degraded(), k=2)["image"])),
    )


def test_segmentation_lies_over_the_image():
    """Without resizing the pixels of a shape, and only they, differ from the plain background's."""
    transform = ImageTransform(48, resize="none", crop="random", flip=True)
    checked = 0
    for k in range(40):
        if "on a plain" not in SOURCE[k]["text"]:
            continue
        out = one(Segmentation(len(SEGMENTATION_NAMES)), transform, k)
        background = out["segmentation"] == 0
        pixels = out["image"][background]
        far = np.abs(out["image"] - np.median(pixels, 0)).max(-1) > 0.2
        assert (far != ~background).mean() < 0.06  # soft edges
        checked += 1
    assert checked >= 5


def test_layout_boxes_lie_over_the_image():
    """A scene's boxes, decoded and moved into the crop, hold the shapes of the placed segmentation."""
    coder = LayoutCoder(len(CLASS_NAMES))
    transform = ImageTransform(48, resize="square", flip=True, smallest_square=0.7)
    flips = set()
    for k in range(30):
        both = WithFields(transform, (Segmentation(9), LayoutTokens(coder)))(SOURCE[k], np.random.default_rng(k))
        objects, crop = coder.decode(both["tokens"])
        flips.add(transform.place(SOURCE[k], np.random.default_rng(k)).flip)
        inside = np.zeros((48, 48), bool)
        for item in objects:
            x0, x1 = (np.array(item["box"])[[0, 2]] - crop[0]) / (crop[2] - crop[0]) * 48
            y0, y1 = (np.array(item["box"])[[1, 3]] - crop[1]) / (crop[3] - crop[1]) * 48
            window = (slice(max(int(y0) - 2, 0), max(int(y1) + 3, 0)), slice(max(int(x0) - 2, 0), max(int(x1) + 3, 0)))
            inside[window] = True
        assert not both["segmentation"][~inside].any(), k
    assert flips == {True, False}


def test_layout_drops_small_objects_and_shuffles():
    coder = LayoutCoder(len(CLASS_NAMES))
    k = next(k for k in range(40) if len(SOURCE[k]["objects"]) == 4)
    whole = ImageTransform(32)
    all_four, _ = coder.decode(one(LayoutTokens(coder), whole, k)["tokens"])
    assert sorted(item["class"] for item in all_four) == sorted(item["class"] for item in SOURCE[k]["objects"])
    large, _ = coder.decode(one(LayoutTokens(coder, min_area=0.1), whole, k)["tokens"])
    assert [item["class"] for item in large] == [SOURCE[k]["label"]]
    shuffled = WithFields(whole, (LayoutTokens(coder),))
    orders = {tuple(shuffled(SOURCE[k], np.random.default_rng(seed))["tokens"]) for seed in range(9)}
    assert len(orders) > 3
    fixed = LayoutTokens(coder, shuffle=False)
    assert coder.decode(one(fixed, whole, k)["tokens"])[0][0]["class"] == SOURCE[k]["label"]


def test_filtered_source_keeps_scenes_with_enough_objects():
    source = FilteredSource(SOURCE, LayoutRules())
    expected = [k for k in range(40) if len(SOURCE[k]["objects"]) >= 2]
    assert len(source) == len(expected) and 10 < len(expected) < 40
    assert [source[i]["name"] for i in range(len(source))] == [SOURCE[k]["name"] for k in expected]
    assert source.annotations(0).keys() == {"label", "text", "objects", "name"}
    assert source.class_names == SOURCE.class_names and f"{len(expected)} kept" in source.describe()
    with pytest.raises(IndexError):
        source[len(source)]
    with pytest.raises(ValueError, match="none of the 40 examples is left"):
        FilteredSource(SOURCE, LayoutRules(min_objects=9))


def test_transforms_can_be_pickled_for_worker_processes(tokenizer):
    transform = WithFields(MOVING, (Tokens(tokenizer), Degraded("bsr"), Masked()))
    there = pickle.loads(pickle.dumps(transform))(SOURCE[0], np.random.default_rng(0))
    for key, value in transform(SOURCE[0], np.random.default_rng(0)).items():
        assert np.array_equal(value, there[key])


def test_missing_or_wrong_annotations_are_named():
    bare = {"name": "x.png", "image": SOURCE[0]["image"]}
    for field, key in (
        (Label(), "label"),
        (Segmentation(9), "segmentation"),
        (Masked("given"), "mask"),
        (LayoutTokens(LayoutCoder(4)), "objects"),
    ):
        with pytest.raises(ValueError, match=rf"x\.png has no '{key}', only name, image"):
            WithFields(MOVING, (field,))(bare, np.random.default_rng(0))
    with pytest.raises(ValueError, match="but there are 1, numbered from 0"):
        one(Segmentation(1))
    with pytest.raises(ValueError, match="'wide', but must be one of train_256"):
        Masked("wide")
    with pytest.raises(ValueError, match="'jpeg', but must be one of bicubic"):
        Degraded("jpeg")


def test_segmentation_255_is_no_class():
    example = SOURCE[0] | {"segmentation": np.full((64, 64), 255, np.uint8)}
    out = WithFields(MOVING, (Segmentation(9),))(example, np.random.default_rng(0))
    assert (out["segmentation"] == 255).all()
