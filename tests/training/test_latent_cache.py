"""The cache of latents through the command line, and that training sees the same numbers as without it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import work
from ldm_jax import build, recipes
from ldm_jax.data import latents
from ldm_jax.data.sources import CorruptExample, FolderSource, ShapesSource
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.errors import DataError
from ldm_jax.images import to_float
from ldm_jax.keys import sample_keys
from ldm_jax.training import latent_cache, setup
from tests.fast import QUICK

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--config.data.validation_images=8", "--config.every.evaluate=0", "--config.every.picture=0",
         "--config.optim.schedule=constant", "--config.unet.channel_mult=(1,)"]  # fmt: skip


class Holed(ShapesSource):
    def __getitem__(self, i):
        if i == 6:
            raise CorruptExample("six", "broken")
        return super().__getitem__(i)


def test_only_what_is_missing_is_encoded(tmp_path):
    """A file that was cut short is made again, the others stay; unreadable images are remembered as such."""
    images, transform = Holed(32, count=10), ImageTransform(32, flip=True)
    store = latents.open_store(tmp_path, {}, 10, (2, 4, 4, 3), shard_bytes=4 * 4 * 96)
    encoded, said = [], []

    def encode(image):
        encoded.append(len(image))
        return image[:, ::8, ::8]

    def fill():
        latent_cache.fill(store, images, transform, encode, 3, workers=0, say=lambda line, **_: said.append(line))

    fill()
    assert store.missing() == [] and encoded == [3] * 8  # 4 batches, each with its mirror image
    assert "3 of 3 files" in said[0] and "10/10 images" in said[-1] and "images/s  left 0m00s" in said[-1]
    whole, kept = store[5], store.path(0).stat().st_mtime_ns
    with pytest.raises(CorruptExample, match="six: broken"):
        store[6]
    with store.path(1).open("r+b") as file:
        file.truncate(70_000)
    encoded.clear()
    fill()
    assert encoded == [3] * 4 and store.missing() == [] and store.path(0).stat().st_mtime_ns == kept
    image = to_float(images[5]["image"])
    assert np.array_equal(whole, np.stack([image, image[:, ::-1]])[:, ::8, ::8])
    assert np.array_equal(replace(store)[5], whole)  # opened anew
    encoded.clear()
    fill()
    assert encoded == []


def config_of(**data):
    config = recipes.load("quickstart_ldm:tiny")
    config.data.update(flip=True, scenes=16, **data)
    config.unet.channel_mult = (1,)
    return config


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """(task, frozen, first batch from the images, first batch from a cache, the cache's folder)."""
    folder, config = tmp_path_factory.mktemp("cache"), config_of()
    shapes = build.first_stage_variables(build.first_stage(config), config.data.image_size, 3)
    frozen = {"first_stage": work.fill(shapes), "latent_scale": np.float32(0.5)}
    batches = []
    for options in ({}, {"cache_latents": str(folder)}):
        iterator = setup.loaders(config_of(**options), folder, frozen).train(0)
        batches.append(next(iterator))
        iterator.close()
    return setup.task(config), frozen, *batches, folder


def test_same_image_and_key_give_the_same_z(cached):
    """Up to the order of sums: the encoder sees other batches here and there."""
    task, frozen, plain, held, _ = cached
    assert "image" not in held and held["moments"].shape == (8, 16, 16, 6)
    drawn = jax.jit(
        lambda frozen, batch, seed: task.ldm.latents(frozen, batch, sample_keys(jax.random.key(seed), 8)),
        compiler_options=QUICK,
    )
    z, same, other = (
        np.asarray(drawn(frozen, {name: batch[name]}, seed))
        for batch, name, seed in ((plain, "image", 3), (held, "moments", 3), (held, "moments", 4))
    )
    assert np.std(z) > 0.1 and np.abs(z - same).max() < 1e-5
    assert np.abs(z - other).max() > 0.1  # drawn anew, not kept


def test_the_step_has_no_encoder(cached):
    """Nothing of the first stage is read but the latent scale; with images its absence is an error."""
    task, frozen, plain, held, _ = cached
    shapes = jax.eval_shape(task.init, jax.random.key_data(jax.random.key(0)), frozen, held)
    bare = frozen | {"first_stage": {}}
    assert jax.eval_shape(task.step, shapes, bare, held)[0] == shapes
    with pytest.raises(Exception, match="encoder"):
        jax.eval_shape(task.step, shapes, bare, plain)


def test_what_cannot_be_cached_says_why(cached, tmp_path):
    frozen, folder = cached[1], str(cached[-1])
    for options, words in (
        (dict(crop="random"), "random crops"),
        (dict(scenes=20), "examples: 16 there, 20 here"),
        (dict(flip=False), "flip: True there, False here"),
    ):
        config = config_of(cache_latents=folder)
        config.data.update(options)
        with pytest.raises(ValueError, match=words):
            setup.loaders(config, tmp_path, frozen)
    other = jax.tree.map(lambda x: x + 1, frozen)
    with pytest.raises(ValueError, match=r"first_stage: '\w+' there, '\w+' here"):
        setup.loaders(config_of(cache_latents=folder), tmp_path, other)


def test_replaced_pictures_are_noticed(cached, tmp_path, monkeypatch):
    """Under the same names and of the same size; wherever the folder lies."""
    task, frozen = cached[:2]
    for k in range(3):
        (tmp_path / f"images/{k}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (k, k, k)).save(tmp_path / f"images/{k}/a.bmp")
    config = config_of(cache_latents=str(tmp_path / "cache"))
    monkeypatch.setattr(latent_cache, "fill", lambda *args, **options: None)

    def start(folder):
        images = FolderSource(tmp_path / folder, "all")
        return latent_cache.from_cache(config, images, ImageTransform(32), task.ldm.first_stage, frozen, cores=2)

    start("images")
    start("images")
    (tmp_path / "images").rename(tmp_path / "moved")
    start("moved")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "moved/1/a.bmp")
    with pytest.raises(DataError, match=r"images: '3 images .*' there, '3 images .*' here"):
        start("moved")


def train(workdir, cache):
    command = [sys.executable, "train.py", "--config=configs/quickstart_ldm.py:tiny", f"--workdir={workdir}",
               f"--config.data.cache_latents={cache}", *SMALL]  # fmt: skip
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return result.stdout, losses


def test_a_run_makes_its_cache_and_trains(tmp_path):
    told, losses = train(tmp_path / "run", tmp_path / "cache")
    assert "caching latents: 64/64 images" in told and len(losses) == 4


@pytest.mark.slow
def test_a_run_from_the_cache_resumes_bit_for_bit(tmp_path):
    _, straight = train(tmp_path / "run", tmp_path / "cache")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # as if killed after step 3
    told, resumed = train(tmp_path / "run", tmp_path / "cache")
    assert "at step 2" in told and "caching latents" not in told
    assert resumed == straight
