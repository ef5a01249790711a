"""Checkpoints: which are there, which stay, and how they come back; config.json of a run, read back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import checkpoint
from ldm_jax.errors import ConfigError, Missing

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(value=0):
    return {"a": jnp.full((64, 8), value, jnp.float32), "b": [jnp.arange(300), {}], "step": jnp.int32(value)}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=DEVICE), state())


def saved(workdir, *steps, keep=3):
    checkpoints = checkpoint.Checkpoints(workdir, keep)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()


def test_restoring_holds_one_array_twice_at_most(tmp_path, monkeypatch):
    """What comes back can be donated, and is bit for bit what was saved."""
    saved(tmp_path, 4)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    read, twice = [], []
    restore, own = checkpoints.manager.restore, checkpoint._own

    def restoring(*args, **options):
        tree = restore(*args, **options)
        read.extend(jax.tree.leaves(tree))
        return tree

    def copying(leaf):
        copy = own(leaf)
        done = [other for other in read[: [other is leaf for other in read].index(True)]]
        twice.append(sum(not other.is_deleted() for other in done))
        return copy

    monkeypatch.setattr(checkpoints.manager, "restore", restoring)
    monkeypatch.setattr(checkpoint, "_own", copying)
    restored = checkpoints.restore(abstract(), 4)
    checkpoints.close()
    assert len(read) == 3 and twice == [0, 0, 0] and all(leaf.is_deleted() for leaf in read)
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state(4))):
        assert ours.dtype == theirs.dtype and ours.sharding == DEVICE and np.array_equal(ours, theirs)
    moved = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(restored)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored)) and int(moved["step"]) == 5


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_checkpoint_stays(tmp_path, keep):
    with pytest.raises(ConfigError, match=rf"config\.keep={keep} .*at least 1"):
        checkpoint.Checkpoints(tmp_path, keep)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("left", [(), ("default/d",)], ids=["empty", "partial"])
def test_what_is_not_finished_is_no_checkpoint(tmp_path, left):
    """A folder named as a step that Orbax did not finish: not restored, not counted, and written over in its turn."""
    saved(tmp_path, 2, 4)
    folder = tmp_path / "checkpoints" / "9"
    folder.mkdir()
    for name in left:
        (folder / name).parent.mkdir()
        (folder / name).write_text("cut short")
    assert checkpoint.steps(tmp_path) == [2, 4]
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() == 4 and int(checkpoints.restore(abstract(), 4)["step"]) == 4
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 9 .*\[2, 4\]"):
        checkpoints.restore(abstract(), 9)
    checkpoints.save(6, state(6))
    checkpoints.close()
    assert checkpoint.steps(tmp_path) == [4, 6] and folder.exists()
    saved(tmp_path, 9, keep=2)
    assert checkpoint.steps(tmp_path) == [6, 9]
    for name in ("2", "6", "4"):
        (tmp_path / "new/checkpoints" / name).mkdir(parents=True)
    assert not checkpoint.has_checkpoint(tmp_path / "new") and checkpoint.has_checkpoint(tmp_path)


def test_runs_of_older_versions_get_the_options_they_lack(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": "first_stage", "optim": {"final_fraction": 0.5}}))
    config = checkpoint.load_config(tmp_path)
    optim = {"warmup_fraction": 0.0, "decay_steps": 0, "final_fraction": 0.5}
    assert config == {"task": "first_stage", "matmul_precision": "default", "optim": optim}
    now = config | {"optim": optim | {"final_fraction": 1.0}}
    assert checkpoint.changes(tmp_path, now) == {"optim.final_fraction": (0.5, 1.0)}


def test_a_folder_without_a_configuration_is_no_run(tmp_path):
    assert checkpoint.changes(tmp_path, {"task": "ldm"}) == {}
    with pytest.raises(Missing, match="not a run directory"):
        checkpoint.load_config(tmp_path)


def test_configurations_of_older_versions_are_migrated(tmp_path):
    """Version 1 had no version; what it did not have gets the value that means what it did."""
    old = {"task": "ldm", "optim": {"b1": 0.9}, "conditioner": {"kind": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = checkpoint.load_config(tmp_path)
    assert config["optim"] == {"warmup_fraction": 0.0, "decay_steps": 0, "final_fraction": 0.0, "b1": 0.9}
    assert config["conditioner"]["trainable"] and config["matmul_precision"] == "default" and "version" not in config
    checkpoint.keep_config(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["version"] == checkpoint.VERSION
    assert checkpoint.load_config(tmp_path) == config and not checkpoint.changes(tmp_path, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not the configuration"),
        ("[1]", "is not the configuration"),
        ('{"task": "ldm", "version": 99}', "newer"),
    ],
)
def test_configurations_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        checkpoint.load_config(tmp_path)
