"""Every recipe: its tiny variant builds, takes a step and stays finite; full-size parameter counts are the paper's."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build, tree

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common"))

# Millions of parameters: UNet for LDMs, autoencoder for first stages (paper's tables 12 and 18; released weights).
PAPER = {
    "celeba_ldm4": 274.06,
    "ffhq_ldm4": 274.06,
    "lsun_bedrooms_ldm4": 274.06,
    "lsun_churches_ldm8": 294.97,
    "first_stage_kl_f4": 55.31,
    "first_stage_kl_f8": 83.65,
    "first_stage_vq_f4": 55.32,
    "first_stage_vq_f8": 67.72,
}
OURS = {"quickstart_first_stage", "quickstart_ldm", "emoji_first_stage", "emoji_ldm"}


def recipe(name, variant=""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


def state_shapes(config):
    frozen = {}
    if config.task == "ldm":
        shapes = build.first_stage_variables(build.first_stage(config), config.data.image_size, 3)
        frozen = {"first_stage": shapes, "latent_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    size = config.data.image_size
    batch = {"image": jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.float32)}
    task, key = build.task(config), jax.random.key_data(jax.random.key(0))
    return task, jax.eval_shape(task.init, key, frozen, batch)


def test_every_recipe_has_a_row():
    assert set(RECIPES) == set(PAPER) | OURS


@pytest.mark.parametrize("name", sorted(PAPER))
def test_parameter_count_at_full_size(name):
    _, shapes = state_shapes(recipe(name))
    part = shapes.params.get("unet", shapes.params.get("autoencoder"))
    assert round(tree.count(part) / 1e6, 2) == PAPER[name]


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_variant_takes_a_step(name):
    config = recipe(name, "tiny")
    config.unlock()
    config.batch_size = 2
    size = config.data.image_size
    frozen = build.frozen(config, "/nonexistent")
    task = build.task(config)
    image = build.source(config, train=True)[0]["image"].astype(np.float32) / 127.5 - 1
    batch = {"image": jnp.broadcast_to(image, (2, size, size, 3))}
    key = jax.random.key_data(jax.random.key(0))
    state = jax.jit(task.init)(key, frozen, batch)
    after, metrics = jax.jit(task.step)(state, frozen, batch)
    assert int(after.step) == 1
    assert all(np.isfinite(v) for v in jax.tree.leaves(metrics)), metrics
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, after.params)
    assert any(jax.tree.leaves(moved))
    values = jax.eval_shape(lambda *a: task.evaluate(*a, 0), after, frozen, batch)
    assert all(v.shape == (2,) for v in values.values())


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_is_the_recipe(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in text and "--workdir=" in text


def test_unknown_variant_names_the_known():
    with pytest.raises(ValueError, match="tiny"):
        recipe("celeba_ldm4", "small")
