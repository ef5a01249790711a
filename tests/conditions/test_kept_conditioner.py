"""A conditioner that is not trained: it comes from another run, lies beside the first stage, and never moves."""

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint, config_file, recipes, tree
from ldm_jax.conditions import hybrid, semantic
from ldm_jax.conditions import text as text_kind
from ldm_jax.errors import Missing
from ldm_jax.recipes import laptop, sections
from ldm_jax.training import resume, setup
from tests.fast import compiled


def text_model(**options):
    """Text and a map of classes, a hybrid, to images of 16x16 pixels, without a first stage."""
    text = text_kind.section(32, 1) | dict(vocab_size=50, max_length=6)
    places = semantic.section(9, channels=2) | dict(n_stages=0)
    config = laptop.quickstart(hybrid.section(text, places, drop_prob=0.5) | options)
    config = sections.finish(config, "tiny").unlock()
    config.first_stage.kind, config.data.image_size, config.batch_size = "identity", 16, 2
    config.unet.update(out_channels=3, channel_mult=(1,), attention_downsamples=())
    return config


def filled(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: (0.1 * rng.standard_normal(s.shape)).astype(s.dtype), shapes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(A run directory with such a model, its averaged conditioner)."""
    run, config = tmp_path_factory.mktemp("trained"), text_model()
    state = filled(setup.abstract_run(config)[0])
    config_file.save(run, config.to_dict())
    checkpoint.save_from_numpy(run, 7, state)
    return run, state.ema["conditioner"]


def test_two_steps_leave_it_bit_by_bit(trained, tmp_path):
    run, theirs = trained
    config = text_model(trainable=False, checkpoint=str(run))
    task, frozen = setup.task(config), setup.frozen(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, frozen["conditioner"], theirs)
    state = filled(setup.abstract_run(config)[0], seed=1)
    state = state.replace(opt_state=jax.tree.map(np.zeros_like, state.opt_state))
    parts = state.params, state.ema, state.opt_state
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(parts)]
    assert names and not [name for name in names if "conditioner" in name]
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32),
        "tokens": rng.integers(0, 50, (2, 6)).astype(np.int32),
        "segmentation": rng.integers(0, 9, (2, 16, 16)).astype(np.int32),
    }
    step = compiled(task.step, state, frozen, batch)
    after, _ = step(*(step(state, frozen, batch)[0], frozen, batch))
    assert int(after.step) == 2 and tree.flatten(after.params).keys() == tree.flatten(state.params).keys()
    jax.tree.map(np.testing.assert_array_equal, frozen["conditioner"], theirs)
    other = frozen | {"conditioner": jax.tree.map(lambda x: -x, frozen["conditioner"])}
    assert float(step(state, other, batch)[1]["loss"]) != float(step(state, frozen, batch)[1]["loss"])
    config_file.save(tmp_path, config.to_dict())
    checkpoint.save_tree(tmp_path / "frozen", frozen)
    kept = setup.frozen(config, tmp_path, kept_only=True)  # the run's own copy
    jax.tree.map(np.testing.assert_array_equal, kept["conditioner"], theirs)
    again = setup.frozen(text_model(trainable=False, checkpoint=str(tmp_path)), tmp_path / "next")
    jax.tree.map(np.testing.assert_array_equal, again["conditioner"], theirs)


def test_mistakes(trained, tmp_path):
    run = str(trained[0])
    with pytest.raises(Missing, match=r"--config\.conditioner\.checkpoint=runs/ldm"):
        setup.frozen(text_model(trainable=False), tmp_path)
    with pytest.raises(Missing, match="is not a run directory"):
        setup.frozen(text_model(trainable=False, checkpoint="nowhere"), tmp_path)
    other = text_model(trainable=False, checkpoint=run)
    other.conditioner.parts.text.max_length = 9
    with pytest.raises(ValueError, match=r"has another conditioner[^!]*parts\.text\.max_length: 6 in .*, 9 here"):
        setup.frozen(other, tmp_path)
    config = text_model(trainable=False, checkpoint=run)
    config.conditioner.parts.text.embedding_std = 0.5
    assert setup.frozen(config, tmp_path)["conditioner"]  # of the first numbers alone, which do not count
    with pytest.raises(ValueError, match="trainable: True there, False here"):
        resume.check_same_run(config, run)
    config.conditioner.trainable = True
    resume.check_same_run(config, run, accept_changes=True)  # where it came from, and how often it is dropped


def test_one_that_learnt_alone(tmp_path):
    """emoji_captions has a linear map in place of the UNet; emoji_text takes its text encoder."""
    alone, model = (recipes.load(f"{name}:tiny").unlock() for name in ("emoji_captions", "emoji_text"))
    for config in (alone, model):
        config.first_stage.kind = "identity"
    state = filled(setup.abstract_run(alone)[0])
    assert state.params.keys() == {"unet", "conditioner"} and state.params["unet"].keys() == {"out"}
    config_file.save(tmp_path / "alone", alone.to_dict())
    checkpoint.save_from_numpy(tmp_path / "alone", 7, state)
    model.conditioner.update(trainable=False, checkpoint=str(tmp_path / "alone"))
    frozen = setup.frozen(model, tmp_path / "next")
    jax.tree.map(np.testing.assert_array_equal, frozen["conditioner"], state.ema["conditioner"])
