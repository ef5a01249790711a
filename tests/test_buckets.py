"""A run directory in a bucket: checkpoints, frozen/, config.json, metrics, pictures, the lock and the tokenizer."""

import contextlib
import json
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import checkpoint, config_file, files, recipes, rundir
from ldm_jax.conditions import text
from ldm_jax.convert.safetensors_file import read_safetensors
from ldm_jax.data.sources import ShapesSource
from ldm_jax.errors import ConfigError, Damaged, Outage, ReadFailed
from ldm_jax.training import lock, logging, snapshots
from ldm_jax.training.state import TrainState
from tests import bucket_tools
from tests.bucket_tools import OBJECTS
from tests.conditions.test_conditions import tiny
from tests.test_checkpoint import abstract, saved, shapes, state
from tests.training.test_saving import train


@pytest.fixture
def run():
    """An empty run directory."""
    with bucket_tools.bucket() as bucket:
        yield files.at(f"{bucket}/runs/mine")


def flip(name):
    data = bytearray(OBJECTS[name][0])
    data[len(data) // 2] ^= 1
    bucket_tools.put(name, bytes(data))


def largest(prefix):
    return max((name for name in OBJECTS if name.startswith(prefix)), key=lambda name: len(OBJECTS[name][0]))


def test_checkpoints(run, capsys):
    """A damaged one is set aside, and what a killed save has left is removed."""
    saved(run, 2, 4, 6, keep=2)
    assert checkpoint.steps(run) == [4, 6] and checkpoint.problems(run, 6) == []
    assert np.all(checkpoint.restore_numpy(str(run), 6, shapes())["a"] == 6)
    flip(largest("bucket/runs/mine/checkpoints/6/default/d/"))
    with pytest.raises(Damaged, match=r"checkpoints/6 is damaged: .*step 4 is whole"):
        checkpoint.restore_numpy(run, 6, shapes())
    bucket_tools.put("bucket/runs/mine/checkpoints/9/default/d/x", b"cut short")
    assert checkpoint.steps(run) == [4, 6]
    checkpoints = checkpoint.Checkpoints(run)
    assert checkpoints.latest() == 4 and int(checkpoints.restore(abstract(), 4)["step"]) == 4
    checkpoints.close()
    said = capsys.readouterr().out
    assert f"removed {run}/checkpoints/9," in said and f"It is now {run}/checkpoints/bad-6" in said
    assert checkpoint.steps(run) == [4] and not any("checkpoints/9/" in name for name in OBJECTS)


def test_a_whole_checkpoint_without_its_last_file_is_finished(run):
    """Copied into the bucket from a disk, or killed just then: its manifest tells."""
    saved(run, 2, 4)
    del OBJECTS[f"bucket/runs/mine/checkpoints/4/{checkpoint.COMMITTED}"]
    assert checkpoint.steps(run) == [2]
    checkpoints = checkpoint.Checkpoints(run)
    assert checkpoints.latest() == 4 and int(checkpoints.restore(abstract(), 4)["step"]) == 4
    checkpoints.close()


def test_configuration_and_frozen(run):
    config_file.save(run, {"task": "ldm", "seed": 0})
    assert config_file.load(str(run)) == {"task": "ldm", "seed": 0}
    flip("bucket/runs/mine/config.json")
    with pytest.raises(Damaged, match=r"gs://bucket/runs/mine/config\.json is damaged"):
        rundir.config_of(str(run))
    frozen = run / "frozen"
    assert not checkpoint.has_tree(frozen)
    checkpoint.save_tree(frozen, state(3), {"digest": "abc"})
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state())
    assert checkpoint.made_from(frozen) == {"digest": "abc"}
    assert np.all(checkpoint.restore_tree(frozen, like)["a"] == 3)
    flip(largest("bucket/runs/mine/frozen/d/"))
    with pytest.raises(Damaged, match="frozen is damaged"):
        checkpoint.restore_tree(frozen, like)
    del OBJECTS["bucket/runs/mine/frozen/commit_success.txt"]  # as a start that was killed leaves it
    assert not checkpoint.has_tree(frozen)


def test_a_run_goes_on_and_its_metrics_are_kept(run, monkeypatch, capsys):
    monkeypatch.setattr(logging, "EVERY", 0.0)
    train(run, steps=6)
    train(str(run), steps=8)
    assert f"resumed {run} at step 6" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 6, 8] and lines[-1]["loss"] > lines[0]["loss"]
    assert config_file.load(run)["steps"] == 8 and (run / "parameters.txt").exists()
    writer = logging.Writer(run, 8)
    writer.picture(8, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.scalars(9, {"loss": 1.0})
    writer.close()
    assert logging.has_pictures(run, 8) and not logging.has_pictures(run, 7)
    assert logging.has_numbers(run, 9, "loss") and OBJECTS["bucket/runs/mine/pictures/samples_0000008.png"]


def test_the_lock(run, monkeypatch):
    for name, seconds in (("BEAT", 0.05), ("SILENT", 0.5), ("SETTLE", 0.2)):
        monkeypatch.setattr(lock, name, seconds)
    name = "bucket/runs/mine/train.lock"
    with lock.held(run):
        before = OBJECTS[name]
        with (
            pytest.raises(ConfigError, match=rf"--workdir={run} belongs to another run: process \d+ on "),
            lock.held(run),
        ):
            raise AssertionError("both have it")
        threading.Event().wait(0.3)
        assert OBJECTS[name] != before  # a sign of life
    assert name not in OBJECTS
    # Of another machine, once alive and once dead.
    other = lock._this_process() | {"machine": "another", "beat": 1}
    bucket_tools.put(name, json.dumps(other).encode())
    timer = threading.Timer(0.2, bucket_tools.put, [name, json.dumps(other | {"beat": 2}).encode()])
    timer.start()
    with pytest.raises(ConfigError, match="belongs to another run"), lock.held(run):
        raise AssertionError("it is alive")
    with lock.held(run):
        assert "another" not in OBJECTS[name][0].decode()


def test_of_two_locks_written_at_once_the_last_one_counts(run, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE", 0.2)
    other = json.dumps(lock._this_process() | {"pid": 1}).encode()
    threading.Timer(0.1, bucket_tools.put, ["bucket/runs/mine/train.lock", other]).start()
    with pytest.raises(ConfigError, match="process 1 on"), lock.held(run):
        raise AssertionError("the other one has it")


@pytest.fixture
def keep(run):
    """Keeps the tokenizer of the run, which has one already."""
    config = tiny("text2img_ldm4")
    config.conditioner.update(tokenizer="captions", null_tokens=(2, 3), vocab_size=200)
    args = config.conditioner, config.conditioner, ShapesSource(32, 8), rundir.tokenizer_of(str(run))
    text.keep_tokenizer(*args)
    return partial(text.keep_tokenizer, *args)


def test_the_tokenizer(keep):
    config, *_, folder = keep.args
    before = dict(OBJECTS)
    keep()
    assert before == OBJECTS and len(text.text_tokenizer(config, folder)("a red circle")[0]) == 77
    flip("bucket/runs/mine/tokenizer/vocab.txt")
    with pytest.raises(Damaged, match=r"vocab\.txt"):
        text.text_tokenizer(config, folder)


def test_snapshots_of_averages(run):
    """They are written, found and read, and those of steps that come again are removed."""
    config = recipes.load("quickstart_ldm:tiny", ["--config.ema.kind=power", "--config.ema.snapshot_every=4"])
    tracks = [{"w": jnp.full(3, value)} for value in (1.5, 2.5)]
    averaged = TrainState(jnp.int32(8), {}, tracks[0], {}, {"ema_1": tracks[1]}, jnp.zeros(2, jnp.uint32))
    writer = snapshots.Snapshots(run, config, 0)
    for step in (4, 8):
        writer.write(step, averaged)
    assert snapshots.steps(run) == [4, 8] and not writer.is_missed(8, last=True)
    arrays, metadata = read_safetensors(snapshots.path_of(run, 8))
    assert (arrays["0/w"] == 1.5).all() and (arrays["1/w"] == 2.5).all() and metadata["sigma_rel"] == "[0.05, 0.1]"
    assert snapshots.Snapshots(run, config, 4).is_missed(8, last=True) and snapshots.steps(run) == [4]


def test_an_outage_says_nothing_about_a_checkpoint(run):
    """It is neither damaged nor missing."""
    saved(run, 2, 4)
    for part in ("checkpoints/4/manifest.json", "checkpoints/4/default", f"checkpoints/4/{checkpoint.FINISHED}"):
        with bucket_tools.refusing(part, bucket_tools.forbidden()), pytest.raises(ReadFailed, match="Forbidden"):
            checkpoint.problems(run, 4)
    with bucket_tools.refusing("checkpoints", bucket_tools.HttpError(503)), pytest.raises(Outage):
        checkpoint.steps(run)
    assert checkpoint.problems(run, 4) == []
    with bucket_tools.refusing("config.json", bucket_tools.HttpError(503)):
        with pytest.raises(Outage):
            config_file.load(run)
        with pytest.raises(Outage):
            config_file.save(run, {"task": "ldm"})
    with bucket_tools.refusing("metrics.jsonl", bucket_tools.HttpError(503)), pytest.raises(Outage):
        logging.has_numbers(run, 4, "loss")


def test_a_lock_that_cannot_be_given_back_ends_no_run_with_an_error(run, monkeypatch, capsys):
    monkeypatch.setattr(lock, "SETTLE", 0.1)
    with bucket_tools.refusing("train.lock", bucket_tools.HttpError(503)), pytest.raises(Outage), lock.held(run):
        raise AssertionError("it has it")
    with contextlib.ExitStack() as refused, lock.held(run):
        refused.enter_context(bucket_tools.refusing("train.lock", bucket_tools.HttpError(503)))
    assert "The lock stays there" in capsys.readouterr().out


def test_a_tokenizer_is_not_made_anew_because_of_an_outage(keep):
    before = dict(OBJECTS)
    with bucket_tools.refusing(text.MADE_FROM, bucket_tools.forbidden()), pytest.raises(ReadFailed):
        keep()
    assert before == OBJECTS
