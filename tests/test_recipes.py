"""Recipes are found by name and by path; wrong names and options are errors that help."""

import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax import recipes
from ldm_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def test_by_name_and_by_path(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert recipes.load("celeba_ldm4:tiny") == recipes.load("configs/celeba_ldm4.py:tiny")
    monkeypatch.chdir(tmp_path)
    assert recipes.load("celeba_ldm4").steps == 410_000
    assert recipes.find("celeba_ldm4:tiny") == recipes.find(str(ROOT / "configs" / "celeba_ldm4.py"))


def test_a_recipe_of_the_user(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ldm_jax.recipes import laptop, sections\n"
        "def get_config(variant=''):\n    return sections.finish(laptop.quickstart(), variant)\n"
    )
    assert recipes.load(f"{tmp_path}/mine.py:tiny", ["--config.steps=7"]).steps == 7


def test_a_mistake_in_a_recipe_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}['x']\n")
    with pytest.raises(KeyError):
        recipes.load(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    "name, words",
    [
        ("celeba", ["no recipe 'celeba'", "similar", "celeba_ldm4", "celeba_compression"]),
        ("configs/celeba_ldm.py", ["no file configs/celeba_ldm.py", "celeba_ldm4"]),
        ("nothing_like_it", ["the recipes:", "quickstart_ldm", "celeba_ldm4"]),
        ("", ["no recipe ''"]),
        ("celeba_ldm4:huge", ["variant 'huge'", "tiny"]),
        ("imagenet_compression:f9", ["variant 'f9'", "f32"]),
    ],
)
def test_wrong_names(name, words):
    with pytest.raises(ConfigError) as error:
        recipes.load(name)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.optim.learning_rat=1", ["config.optim.learning_rat is no option", "config.optim.learning_rate"]),
        ("--config.batch_size=many", ["config.batch_size", "many"]),
        ("--confg.batch_size=1", ["confg.batch_size"]),
        ("16", ["unexpected: 16"]),
    ],
)
def test_wrong_options(override, words):
    with pytest.raises(ConfigError) as error:
        recipes.load("celeba_ldm4", [override])
    assert all(word in str(error.value) for word in words)


def test_options_change_a_recipe():
    config = recipes.load("celeba_ldm4", ["--config.batch_size", "16", "--config.data.flip", "--config.seed=3"])
    assert (config.batch_size, config.data.flip, config.seed) == (16, True, 3)


def test_models_of_a_recipe():
    assert recipes.variants("imagenet_compression") == ("f1", "f2", "f4", "f8", "f16", "f32")
    assert recipes.variants("celeba_ldm4") == ()


def test_recipes_are_listed_without_jax():
    code = "import sys; from ldm_jax import recipes; assert recipes.names(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_emoji_in_two_sizes():
    for name in ("emoji_f8_first_stage", "emoji_captions", "emoji_text"):
        assert recipes.variants(name) == ("64", "128")
        assert recipes.load(f"{name}:64") == recipes.load(name)
        assert recipes.load(f"{name}:64_tiny") == recipes.load(f"{name}:tiny")
        small, large = recipes.load(name), recipes.load(f"{name}:128")
        assert (small.data.image_size, large.data.image_size) == (64, 128)
        assert (small.data.path, large.data.path) == ("datasets/emoji64", "datasets/emoji128")
        assert recipes.load(f"{name}:128_tiny").steps == 4
    with pytest.raises(ConfigError, match="there are, after a colon: 64, 128"):
        recipes.load("emoji_text:256")
