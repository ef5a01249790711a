"""Cached latents as files and as examples; moments here are numbers that need no network."""

import json
import pickle

import numpy as np
import pytest

from ldm_jax.conditions import class_label, layout, semantic, superres, text, vectors
from ldm_jax.data import fields, latents
from ldm_jax.data.layout import LayoutCoder
from ldm_jax.data.shapes import CLASS_NAMES
from ldm_jax.data.sources import CorruptExample, ShapesSource
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.errors import DataError
from ldm_jax.images import to_float
from tests.data_tools import batch_at

FACTS = {"first_stage": "abc", "image_size": 8}
SHAPE = (2, 4, 4, 3)


def store_in(folder, count=10, per_shard=4, **facts):
    return latents.open_store(folder, FACTS | facts, count, SHAPE, shard_bytes=per_shard * 4 * 96)


def numbered(indices):
    return (np.full(SHAPE, i, np.float32) for i in indices)


def filled(folder):
    store = store_in(folder)
    for shard in range(store.shards):
        store.write(shard, numbered(store.indices(shard)))
    return store


def test_what_is_written_is_read(tmp_path):
    store = store_in(tmp_path)
    assert store.missing() == [0, 1, 2] and [len(store.indices(s)) for s in range(3)] == [4, 4, 2]
    values = np.random.default_rng(0).normal(size=(10, *SHAPE)).astype(np.float32)
    for shard in range(3):
        made = [CorruptExample("bad.png", "cut\nshort") if i == 5 else values[i] for i in store.indices(shard)]
        store.write(shard, made)
    again = pickle.loads(pickle.dumps(store_in(tmp_path, per_shard=1)))  # the folder knows how it is divided
    assert again.missing() == []
    for i in (0, 4, 9):
        assert np.array_equal(again[i], values[i])
    with pytest.raises(CorruptExample, match=r"bad\.png: cut\nshort"):
        again[5]
    with pytest.raises(IndexError):
        again[10]


@pytest.mark.parametrize("left", [0, 100, 0.5, -1])
def test_a_half_written_file_is_missing(tmp_path, left):
    """Whatever was left of it; what lies about of a killed run goes when its file is written again."""
    store = filled(tmp_path)
    path = store.path(1)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(size * left) if isinstance(left, float) else left % size)
    rubbish = tmp_path / f"{store.path(1).name}.1.tmp"
    rubbish.write_bytes(b"half")
    assert store.missing() == [1]
    store.write(1, numbered(store.indices(1)))
    assert store.missing() == [] and not rubbish.exists() and store[5][0, 0, 0, 0] == 5


def test_too_few_examples_are_no_file(tmp_path):
    store = store_in(tmp_path)
    with pytest.raises(ValueError, match="given 3 examples, but holds 4"):
        store.write(0, numbered(range(3)))
    assert 0 in store.missing()


def test_a_cache_of_something_else_is_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(ValueError) as error:
        store_in(tmp_path, first_stage="xyz")
    assert "first_stage: 'abc' there, 'xyz' here" in str(error.value) and "image_size" not in str(error.value)
    assert "--config.data.cache_latents=DIR, or delete" in str(error.value)
    with pytest.raises(ValueError, match="examples: 10 there, 11 here"):
        store_in(tmp_path, count=11)
    facts = json.loads((tmp_path / "latents.json").read_text())
    (tmp_path / "latents.json").write_text(json.dumps(facts | {"later_option": 1}))
    with pytest.raises(ValueError, match="later_option: 1 there, None here"):
        store_in(tmp_path)


def test_a_cache_of_an_older_version_is_refused(tmp_path):
    """It did not look at what is in the files of images."""
    filled(tmp_path)
    facts = json.loads((tmp_path / "latents.json").read_text())
    (tmp_path / "latents.json").write_text(json.dumps(facts | {"version": 1}))
    with pytest.raises(DataError, match=r"(?s)older version, .*cannot be checked.*cache_latents=DIR, or delete"):
        store_in(tmp_path)


CODER = LayoutCoder(len(CLASS_NAMES), 3, 8192, True, ())
MADE = {
    "none": (),
    "class": (class_label.Label(),),
    "text": (class_label.Label(), text.Tokens(lambda text: (np.full(4, len(text), np.int32), np.ones(4, np.int32)))),
    "layout": (layout.LayoutTokens(CODER),),
    "pictures": (vectors.VectorsField(1, 64), superres.Degraded("bsr_light", 2), semantic.Segmentation(9)),
}


@pytest.mark.parametrize("kind", MADE)
def test_batches_are_those_without_a_cache(tmp_path, kind):
    """Same order, same mirroring, same fields; the stand-in for the encoder keeps every eighth pixel."""
    images = ShapesSource(32, count=10, simple=True)
    transform = ImageTransform(32, flip=True)
    store = store_in(tmp_path)
    for shard in range(store.shards):
        seen = (to_float(images[i]["image"])[None] for i in store.indices(shard))
        store.write(shard, (np.concatenate([x, x[:, :, ::-1]])[:, ::8, ::8] for x in seen))
    made = MADE[kind]
    source = latents.LatentSource(images, store, latents.needs_pictures(made))
    assert source.pictures == (kind in ("layout", "pictures"))
    for step in (0, 3):
        plain = batch_at(images, fields.WithFields(transform, made), 8, step, seed=2)
        cached = batch_at(source, latents.LatentTransform(transform, made), 8, step, seed=2)
        assert np.array_equal(cached.pop("moments"), plain.pop("image")[:, ::8, ::8])
        assert cached.keys() == plain.keys()
        for name in plain:
            assert np.array_equal(cached[name], plain[name]), name


def test_random_crops_are_refused():
    for options in (dict(crop="random"), dict(resize="square")):
        with pytest.raises(ValueError, match="cannot be cached with random crops"):
            latents.LatentTransform(ImageTransform(8, **options))


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b"{}", b"\xff", b'{"version": "1", "per_shard": 2}', b'{"version": 2, "per_shard": 0}'],
)
def test_a_damaged_description_is_named(tmp_path, text):
    (tmp_path / "latents.json").write_bytes(text)
    with pytest.raises(DataError, match=r"latents\.json is damaged .*delete this one"):
        store_in(tmp_path)
