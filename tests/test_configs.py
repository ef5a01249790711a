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
# Compile fast, run slowly: every program here runs once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
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


def filled(shapes):
    """Arrays of these shapes: floats small and random, the rest zero. Much faster than running the real init."""
    rng = np.random.default_rng(0)

    def fill(s):
        if jnp.issubdtype(s.dtype, jnp.floating):
            return (rng.standard_normal(s.shape) / np.sqrt(max(s.size // max(s.shape[-1:] or (1,)), 1))).astype(s.dtype)
        return np.zeros(s.shape, s.dtype)

    return jax.tree.map(fill, shapes)


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_variant_takes_a_step(name):
    config = recipe(name, "tiny")
    config.unlock()
    config.batch_size = 2
    size = config.data.image_size
    task, shapes = state_shapes(config)
    state = filled(shapes)
    state = state.replace(opt_state=jax.tree.map(np.zeros_like, state.opt_state))
    frozen = {}
    if config.task == "ldm":
        first_stage = build.first_stage_variables(build.first_stage(config), size, 3)
        frozen = {"first_stage": filled(first_stage), "latent_scale": np.float32(1.0)}
    image = build.source(config, train=True)[0]["image"].astype(np.float32) / 127.5 - 1
    batch = {"image": np.stack([image, image[::-1]])}
    step = jax.jit(task.step).lower(state, frozen, batch).compile(compiler_options=QUICK)
    after, metrics = step(state, frozen, batch)
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
