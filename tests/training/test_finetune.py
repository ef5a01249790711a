"""A new run that begins with another one's parameters: what is taken, what is not, and what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import recipes, rundir, tree
from ldm_jax.errors import ConfigError, Missing
from ldm_jax.training import finetune, setup
from tests.test_pipeline import classes, keep


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return keep(tmp_path_factory.mktemp("class"), classes())


def state_of(config):
    """An initialised state, of numbers that no run has."""
    shapes, _ = setup.abstract_run(config)
    return jax.tree.map(lambda s: jnp.full(s.shape, 5, s.dtype), shapes)


def test_everything_of_the_same_model(run, tmp_path):
    config = classes()
    config.init_from = str(run)
    said = []
    before = state_of(config)
    after = finetune.beginning(config, tmp_path, said.append)(before)
    params, _, step = rundir.model_of(rundir.config_of(run), run)
    for name in ("params", "ema"):
        found = tree.flatten(getattr(after, name))
        assert all(np.array_equal(found[key], value) for key, value in tree.flatten(params).items()), name
    assert after.opt_state is before.opt_state and int(after.step) == int(before.step)
    assert said == [f"init_from {run}, step {step}: {len(found)} of {len(found)} arrays of parameters are taken"]
    # The averages are arrays of their own: a step gives away both.
    pairs = zip(jax.tree.leaves(after.params), jax.tree.leaves(after.ema))
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


def test_other_classes_begin_anew_and_are_named(run, tmp_path):
    config = classes()
    config.conditioner.n_classes = 7
    config.init_from = str(run)
    said, before = [], state_of(config)
    after = finetune.beginning(config, tmp_path, said.append)(before)
    embedding = next(name for name in tree.flatten(after.params) if name.endswith("embedding"))
    both = [tree.flatten(state.params) for state in (before, after)]
    assert both[0][embedding] is both[1][embedding]
    assert sum(a is not b for a, b in zip(*(d.values() for d in both))) == len(both[0]) - 1
    text = "\n".join(said)
    assert "begin anew, of another shape (1):" in text and f"{embedding}: (65, 32) there, (8, 32) here" in text


def test_first_stage_and_latent_scale_come_along(run, tmp_path):
    config = classes()
    assert not rundir.begins_with_latents(config)
    config.init_from, config.first_stage.checkpoint = str(run), ""
    assert rundir.begins_with_latents(config) and setup.task(config).scale_is_given
    frozen = setup.frozen(config, tmp_path)
    assert float(frozen["latent_scale"]) == float(rundir.kept_frozen(rundir.config_of(run), run)["latent_scale"])
    config.first_stage = recipes.load("quickstart_class:tiny").first_stage
    config.first_stage.checkpoint = ""
    with pytest.raises(ConfigError, match=r"(?s)init_from=.* has no latents .*first_stage\.checkpoint=RUN"):
        setup.frozen(config, tmp_path)


def test_a_run_that_has_begun_goes_on_without_it(run):
    config = classes()
    config.init_from = "runs/that_was_removed"
    assert finetune.beginning(config, run) is None


@pytest.mark.parametrize("where", ["nowhere", "first_stage"])
def test_what_cannot_be_begun_with(run, tmp_path, where):
    config = recipes.load("quickstart_first_stage:tiny").unlock()
    config.init_from = str(run if where == "first_stage" else tmp_path / where)
    error = ConfigError if where == "first_stage" else Missing
    with pytest.raises(error, match=r"run of task 'ldm'|the run to begin from"):
        finetune.beginning(config, tmp_path)


def test_nothing_that_fits_is_an_error(run, tmp_path):
    config = classes()
    config.init_from = str(run)
    begin = finetune.beginning(config, tmp_path)
    state = state_of(config)
    with pytest.raises(ConfigError, match="not one of its parameters fits"):
        begin(state.replace(params={"other": state.params["unet"]}))
