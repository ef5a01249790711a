"""convert.py --export: the model of a run of each task, without its training state, and where it can be given."""

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import checkpoint, config_file, recipes, rundir
from ldm_jax.cli import convert
from ldm_jax.training import finetune, setup
from tests.test_classifier_guidance import config_of, keep

TASKS = ("first_stage", "ldm", "classifier")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of each task, of random numbers, and its export, NAME.exported."""
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)

    def draw(shape):
        return rng.standard_normal(shape)

    first_stage = recipes.load("quickstart_first_stage:tiny")
    config_file.save(root / "first_stage", first_stage.to_dict())
    state, _ = setup.abstract_run(first_stage)
    state = jax.tree.map(lambda s: np.asarray(draw(s.shape), s.dtype), state)
    checkpoint.save_from_numpy(root / "first_stage", 7, state)
    keep(root / "ldm", config_of("quickstart_ldm"), 2.0, draw)
    keep(root / "classifier", config_of("quickstart_classifier"), 2.0, draw)
    (root / "ldm" / "tokenizer").mkdir()
    (root / "ldm" / "tokenizer" / "vocab.txt").write_text("[PAD]")
    for task in TASKS:
        convert.main(["--from", str(root / task), "--to", str(root / f"{task}.exported"), "--export"])
    return root


@pytest.mark.parametrize("task", TASKS)
def test_every_task_comes_back_bit_by_bit(root, task, capsys):
    run, exported = root / task, root / f"{task}.exported"
    config = rundir.config_of(exported)
    assert config == rundir.config_of(run) and config.task == task
    assert not (exported / "checkpoints").exists() and (exported / "tokenizer").is_dir() == (task == "ldm")
    ours, theirs = (rundir.model_of(config, folder)[:2] for folder in (exported, run))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs) and jax.tree.leaves(ours)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    with pytest.raises(SystemExit) as end:
        convert.main(["--check", str(exported)])
    assert end.value.code == 0 and "model.safetensors: ok" in capsys.readouterr().out


def test_an_export_stands_where_a_run_can_be_given(root):
    ldm, classifier = str(root / "ldm.exported"), str(root / "classifier.exported")
    assert ldm_jax.load(ldm).weights == "exported" and ldm_jax.load(root / "first_stage.exported").config
    guided = config_of("quickstart_classifier", guides=ldm)
    assert float(setup._frozen_of_source(guided)["latent_scale"]) == 2.0
    config = rundir.config_of(ldm)
    _, frozen, _ = rundir.model_of(config, ldm)
    assert rundir.classifier(classifier, config, frozen, ldm)[2] is None
    for task in TASKS:
        begun = rundir.config_of(root / task)
        found, step = finetune.parameters(begun, str(root / f"{task}.exported"))
        assert found and step is None


def test_half_the_size(root, tmp_path):
    with pytest.raises(SystemExit):
        convert.parse(["--from", str(root / "ldm"), "--to", "x", "--dtype=bfloat16"])
    convert.main(["--from", str(root / "ldm"), "--to", str(tmp_path / "x"), "--export", "--dtype=bfloat16"])
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "x", root / "ldm.exported")]
    assert sizes[0] < 0.6 * sizes[1] and rundir.model_of(rundir.config_of(tmp_path / "x"), tmp_path / "x")
