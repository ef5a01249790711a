"""The loop and its checkpoints, with a task that counts: a failed save and a damaged checkpoint are told in time."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import checkpoint, files, recipes, tree
from ldm_jax.errors import Damaged, ReadFailed, ReadOutage, SaveFailed, WriteFailed
from ldm_jax.training import logging, loop, sharding
from ldm_jax.training.nonfinite import NonFinite
from ldm_jax.training.state import TrainState


class Counting:
    """params["sum"] [] is the sum of the numbers of the steps so far."""

    columns, headline, keeps_frozen, draws = None, ("loss",), False, False

    def prepare(self, frozen, batches, say):
        return frozen

    def init(self, key_data, frozen, batch):
        params = {"counted": {"sum": jnp.zeros(())}}
        return TrainState(jnp.zeros((), jnp.int32), params, ema={}, opt_state={}, variables={}, key=key_data)

    def step(self, state, frozen, batch):
        total = state.params["counted"]["sum"] + batch["image"].sum()
        return state.replace(step=state.step + 1, params={"counted": {"sum": total}}), {"loss": total}

    def evaluate(self, state, frozen, batch, i):
        return {}


class Batches:
    closed = 0

    def __init__(self, start):
        self.k = start

    def __iter__(self):
        return self

    def __next__(self):
        self.k += 1
        return {"image": np.full((1,), self.k, np.float32)}

    def close(self):
        Batches.closed += 1


def train(workdir, task=None, frozen=None, log=2, **changes):
    config = recipes.load("quickstart_ldm:tiny").unlock()
    config.every.update(log=log, evaluate=0, picture=0, checkpoint=5)
    config.update(batch_size=1, **changes)
    loaders = loop.Loaders(Batches, None, None)
    loop.run(task or Counting(), loaders, frozen or {}, config, sharding.make_mesh(), workdir)


def result(workdir, step):
    shape = {"params": {"counted": {"sum": jax.ShapeDtypeStruct((), jnp.float32)}}}
    return float(checkpoint.restore_numpy(workdir, step, shape)["params"]["counted"]["sum"])


def test_a_failed_save_ends_the_run_at_the_next_log(tmp_path, monkeypatch):
    """Not 5 steps later, when the next checkpoint is due; and the same command goes on."""
    sign = checkpoint._sign

    def no_space(folder, step):
        if step == 10:
            raise OSError(28, "No space left on device")
        sign(folder, step)

    monkeypatch.setattr(checkpoint, "_sign", no_space)
    save = checkpoint.Checkpoints.save

    def saving(self, step, state):
        save(self, step, state)
        while step == 10 and self.manager.is_saving_in_progress():
            pass  # so that the test does not depend on how fast the disk is

    monkeypatch.setattr(checkpoint.Checkpoints, "save", saving)
    with pytest.raises(SaveFailed, match=r"step 10 could not be written .*No space left on device.* that of step 5"):
        train(tmp_path, steps=20)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 12
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]
    monkeypatch.setattr(checkpoint, "_sign", sign)
    train(tmp_path, steps=20)
    assert checkpoint.steps(tmp_path) == [10, 15, 20] and result(tmp_path, 20) == sum(range(21))


class Exploding(Counting):
    """Its loss is not finite from step 7 on."""

    def step(self, state, frozen, batch):
        new, metrics = super().step(state, frozen, batch)
        return new, {"loss": jnp.where(new.step < 7, metrics["loss"], jnp.nan)}

    def gradients(self, state, frozen, batch):
        return {"counted": {"sum": jnp.float32(jnp.nan)}}, {}


def failing(step, monkeypatch):
    """The save of the step fails."""
    sign = checkpoint._sign

    def no_space(folder, saved):
        if saved == step:
            raise OSError(28, "No space left on device")
        sign(folder, saved)

    monkeypatch.setattr(checkpoint, "_sign", no_space)


@pytest.mark.parametrize("first", [4, 5])
def test_what_is_learnt_is_saved_where_metrics_cannot_be_written(first, tmp_path, monkeypatch):
    """Also where no checkpoint was due, as at step 4."""

    def full(self, step, values, prefix=""):
        if step >= first:
            with files.writing(self.path):
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging.Writer, "scalars", full)
    with pytest.raises(WriteFailed, match=r"metrics\.jsonl could not be written: No space left on.*Make room"):
        train(tmp_path, steps=10)
    assert checkpoint.steps(tmp_path)[-1] == first and result(tmp_path, first) == sum(range(first + 1))


@pytest.mark.parametrize("kind", [ReadFailed, ReadOutage])
def test_what_is_learnt_is_saved_where_data_do_not_come(kind, tmp_path, monkeypatch):
    following = Batches.__next__

    def cut(self):
        if self.k == 4:
            raise kind("gs://b/x could not be read")
        return following(self)

    monkeypatch.setattr(Batches, "__next__", cut)
    with pytest.raises(kind, match=r"gs://b/x could not be read\. Step 4 is saved: the same command goes on"):
        train(tmp_path, log=3, steps=10)
    assert checkpoint.steps(tmp_path) == [4] and result(tmp_path, 4) == sum(range(5))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 4]
    monkeypatch.undo()
    train(tmp_path, steps=10)
    assert result(tmp_path, 10) == sum(range(11))


def test_an_outage_is_told_though_the_save_fails_too(tmp_path, monkeypatch):
    def away(self):
        raise ReadOutage("gs://b/x could not be read")

    following = Batches.__next__
    monkeypatch.setattr(Batches, "__next__", lambda self: away(self) if self.k == 3 else following(self))
    failing(3, monkeypatch)
    with pytest.raises(ReadOutage, match=r"(?s)gs://b/x could not be read\..*the checkpoint of step 3 could not be"):
        train(tmp_path, steps=10)


def test_what_is_not_finite_is_not_saved_where_data_do_not_come(tmp_path, monkeypatch):
    def away(self):
        raise ReadOutage("gs://b/x could not be read")

    following = Batches.__next__
    monkeypatch.setattr(Batches, "__next__", lambda self: away(self) if self.k == 8 else following(self))
    with pytest.raises(NonFinite, match="step 7"):
        train(tmp_path, Exploding(), log=100, steps=10)
    assert checkpoint.steps(tmp_path) == [5]


@pytest.mark.parametrize("name, written", [("parameters.txt", "parameters.txt"), ("config.json", "config.json.tmp")])
def test_files_at_the_start_that_cannot_be_written_are_told(name, written, tmp_path):
    (tmp_path / written).mkdir()
    with pytest.raises(WriteFailed, match=rf"{name}.* could not be written: Is a directory\. .*Make room"):
        train(tmp_path, steps=2)


def test_all_is_closed_when_the_last_save_fails(tmp_path, monkeypatch):
    failing(10, monkeypatch)
    closed, writers = Batches.closed, []
    monkeypatch.setattr(logging.Writer, "close", lambda self: writers.append(self))
    with pytest.raises(SaveFailed, match="step 10 could not be written"):
        train(tmp_path, steps=10)
    assert len(writers) == 1 and Batches.closed == closed + 1


def test_a_failed_save_does_not_hide_that_a_loss_is_not_finite(tmp_path, monkeypatch):
    failing(5, monkeypatch)
    monkeypatch.setattr(checkpoint.Checkpoints, "check", lambda self: None)  # as if the save were still going on
    with pytest.raises(NonFinite) as error:
        train(tmp_path, Exploding(), steps=20)
    text = str(error.value)
    assert "step 7: loss is not finite" in text and "step 5 could not be written" in text, text
    assert "No space left on device" in text and "of 1 of 1 modules: counted/sum" in text, text


def test_a_damaged_checkpoint_costs_steps_alone(tmp_path, capsys):
    """The run ends as if nothing had happened."""
    train(tmp_path, steps=15, keep=2, keep_every=5)
    assert checkpoint.steps(tmp_path) == [5, 10, 15]
    (tmp_path / "checkpoints" / "15" / "default" / "_METADATA").write_text("")
    train(tmp_path, steps=18, keep=2, keep_every=5)
    said = capsys.readouterr().out
    assert "the checkpoint of step 15 is damaged: default/_METADATA: it has 0 bytes" in said
    assert "going on from step 10 instead: the 5 steps after it are done again" in said
    assert "resumed" in said and result(tmp_path, 18) == sum(range(19))
    assert (tmp_path / "checkpoints" / "bad-15").is_dir() and checkpoint.steps(tmp_path) == [5, 10, 15, 18]
    for step in checkpoint.steps(tmp_path):
        (tmp_path / "checkpoints" / str(step) / "manifest.json").write_text("")
    with pytest.raises(Damaged, match="no checkpoint of this run is whole"):
        train(tmp_path, steps=20)
    assert checkpoint.steps(tmp_path) == [5, 10, 15, 18]


class Measuring(Counting):
    """It measures something before it begins, and the run keeps it."""

    keeps_frozen = True

    def prepare(self, frozen, batches, say):
        return frozen | {"latent_scale": jnp.float32(2)}


def test_frozen_is_kept_with_what_it_was_made_from(tmp_path):
    frozen = {"first_stage": {"a": np.arange(3.0, dtype=np.float32)}, "latent_scale": np.float32(1)}
    train(tmp_path, Measuring(), frozen, steps=2)
    made = checkpoint.made_from(tmp_path / "frozen")
    assert made["digests"] == {"first_stage": tree.digest(frozen["first_stage"])}
    assert made["options"]["first_stage.checkpoint"] == "random" and made["options"]["latent_scale"] == 0.0
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), frozen)
    assert checkpoint.restore_tree(tmp_path / "frozen", shapes)["latent_scale"] == 2
