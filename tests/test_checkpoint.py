"""Checkpoints: which are there, which stay, and how they come back."""

import json
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import checkpoint, manifest
from ldm_jax.errors import ConfigError, Damaged, SaveFailed

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(value=0):
    return {"a": jnp.full((64, 8), value, jnp.float32), "b": [jnp.arange(300), {}], "step": jnp.int32(value)}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=DEVICE), state())


def saved(workdir, *steps, **kept):
    checkpoints = checkpoint.Checkpoints(workdir, **kept)
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
    (tmp_path / "checkpoints" / "4" / "commit_success.txt").unlink()  # older versions of Orbax wrote none
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


def test_checkpoints_at_multiples_stay(tmp_path):
    saved(tmp_path, 2, 4, 6, 8, 10, keep=1, keep_every=4)
    assert checkpoint.steps(tmp_path) == [4, 8, 10]
    with pytest.raises(ConfigError, match=r"config\.keep_every=-1 "):
        checkpoint.Checkpoints(tmp_path, keep_every=-1)


def test_what_killed_saves_left_is_removed(tmp_path, capsys):
    """Only that: other folders and files stay."""
    saved(tmp_path, 2)
    folder = tmp_path / "checkpoints"
    left = ("4.orbax-checkpoint-tmp", "6.orbax-checkpoint-tmp-17")
    stays = ("bad-4", "mine", "mine.orbax-checkpoint-tmp", "8")
    for name in (*left, *stays):
        (folder / name / "default").mkdir(parents=True)
    (folder / "9.orbax-checkpoint-tmp").write_text("a file")
    saved(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"2", "9.orbax-checkpoint-tmp", *stays}
    said = capsys.readouterr().out
    assert all(f"removed {folder / name}," in said for name in left) and said.count("removed") == 2


def test_the_manifest_is_there_before_the_checkpoint(tmp_path, monkeypatch):
    """A save that is killed at any time leaves no checkpoint without a manifest."""
    sign, seen = checkpoint._sign, []

    def signing(folder, step):
        seen.append(("before", (folder / str(step)).exists()))
        sign(folder, step)
        seen.append(("after", (folder / str(step)).exists()))

    monkeypatch.setattr(checkpoint, "_sign", signing)
    saved(tmp_path, 2)
    assert seen == [("before", False), ("after", False)]
    folder = tmp_path / "checkpoints" / "2"
    record = json.loads((folder / "manifest.json").read_text())["files"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - record.keys() <= {"manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert checkpoint.problems(tmp_path, 2) == []


def shapes():
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in state().items() if name != "b"}


def test_a_reader_refuses_a_damaged_checkpoint(tmp_path):
    """One bit, a cut, zeros or nothing in place of any file: it is named, and so is what to ask for. Nothing moves."""
    saved(tmp_path, 2, 4)
    folder = tmp_path / "checkpoints" / "4"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 6
    for path in files:
        good, name = path.read_bytes(), path.relative_to(folder).as_posix()
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        for bad in (bytes(flipped), good[: len(good) // 2], bytes(len(good)), None):
            path.unlink()
            if bad is not None:
                path.write_bytes(bad)
            if name == "commit_success.txt" or (name == "_CHECKPOINT_METADATA" and bad == bytes(flipped)):
                continue  # dates: nothing of the model
            with pytest.raises(Damaged) as error:
                checkpoint.restore_numpy(tmp_path, 4, shapes())
            text = str(error.value)
            assert f"{folder} is damaged: " in text and "step 2 is whole" in text and "--checkpoint=2" in text, text
            assert name in text or name == "manifest.json"
        path.write_bytes(good)
    assert np.all(checkpoint.restore_numpy(tmp_path, 4, shapes())["a"] == 4)
    (folder / "default" / "_METADATA").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    with pytest.raises(Damaged, match=r"_METADATA: it is missing\. No other checkpoint of the run is whole"):
        checkpoint.restore_numpy(tmp_path, 4, shapes())


def test_damage_that_shows_while_arrays_are_read_refuses_them(tmp_path, monkeypatch):
    """The files of arrays are compared at the same time; what was read of damaged ones is not given back."""
    monkeypatch.setattr(manifest, "_SMALL", -1)
    saved(tmp_path, 2)
    read = []
    restore = checkpoint.ocp.PyTreeCheckpointer.restore

    def restoring(*args, **options):
        read.append(restore(*args, **options))
        return read[-1]

    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointer, "restore", restoring)
    path = max((tmp_path / "checkpoints" / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), len(good) // 2 + 3):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(Damaged, match=r"2 is damaged: .*another checksum"):
            checkpoint.restore_numpy(tmp_path, 2, shapes())
    path.write_bytes(good)
    count = len(read)
    assert np.all(checkpoint.restore_numpy(tmp_path, 2, shapes())["a"] == 2) and len(read) == count + 1


def test_training_compares_ahead(tmp_path, monkeypatch):
    """What began while the run was prepared is waited for, and not done again."""
    saved(tmp_path, 2, 5)
    damage(tmp_path, 5)
    checkpoint.compare_ahead(tmp_path / "new")
    checkpoint.compare_ahead(tmp_path)
    begun, comparison = [], manifest.Comparison
    monkeypatch.setattr(manifest, "Comparison", lambda folder: begun.append(folder) or comparison(folder))
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest() == 2 and [folder.name for folder in begun] == ["2"] and not checkpoint._AHEAD
    assert checkpoint.steps(tmp_path) == [2]
    checkpoints.close()


def damage(workdir, step):
    path = max((workdir / "checkpoints" / str(step)).rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)


def test_training_sets_damaged_checkpoints_aside(tmp_path, capsys):
    saved(tmp_path, 2, 5, 9)
    (tmp_path / "checkpoints" / "bad-9").mkdir()
    damage(tmp_path, 5)
    damage(tmp_path, 9)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest() == 2 and int(checkpoints.restore(abstract(), 2)["step"]) == 2
    said = capsys.readouterr().out
    assert "the checkpoint of step 9 is damaged: default/" in said and "another checksum" in said
    assert str(tmp_path / "checkpoints" / "bad-9-2") in said and "the 7 steps after it are done again" in said
    checkpoints.save(5, state(50))
    checkpoints.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "5", "bad-5", "bad-9", "bad-9-2"}
    assert checkpoint.steps(tmp_path) == [2, 5] and checkpoint.problems(tmp_path, 5) == []


def test_training_does_not_begin_anew_when_all_are_damaged(tmp_path):
    saved(tmp_path, 2, 4)
    damage(tmp_path, 2)
    (tmp_path / "checkpoints" / "4" / "_CHECKPOINT_METADATA").unlink()
    for _ in range(2):
        checkpoints = checkpoint.Checkpoints(tmp_path)
        with pytest.raises(
            Damaged, match=r"no checkpoint of this run is whole:\n.*4: _CHECKPOINT_METADATA: it is missing\n.*2: "
        ):
            checkpoints.latest()
        checkpoints.close()
    assert checkpoint.steps(tmp_path) == [2, 4]
    for step in ("2", "4"):
        (tmp_path / "checkpoints" / step).rename(tmp_path / "checkpoints" / f"bad-{step}")
    with pytest.raises(Damaged, match="bad-2: set aside before"):
        checkpoint.Checkpoints(tmp_path).latest()
    assert checkpoint.Checkpoints(tmp_path / "new").latest() is None


def test_a_manifest_that_is_lost_is_damage(tmp_path, capsys):
    """Not so for checkpoints from before the run's first manifest: an older version made them."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (2, 4, 6):
        checkpoints.save(step, {"a": jnp.arange(3.0)})
    checkpoints.close()
    for step in (2, 6):
        (tmp_path / "checkpoints" / str(step) / "manifest.json").unlink()
    assert checkpoint.problems(tmp_path, 2) is None
    assert checkpoint.problems(tmp_path, 6) == ["manifest.json: it is missing"]
    abstract = {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(Damaged, match=r"6 is damaged: manifest\.json: it is missing.*step 4 is whole"):
        checkpoint.restore_numpy(tmp_path, 6, abstract)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest() == 4
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "bad-6").is_dir()
    (tmp_path / "checkpoints" / "4" / "manifest.json").unlink()
    checkpoint.save_tree(tmp_path / "frozen", {"a": np.arange(3.0)}, {"digests": {}})
    assert checkpoint.problems(tmp_path, 2) == checkpoint.problems(tmp_path, 4) == ["manifest.json: it is missing"]
    (tmp_path / "frozen" / "manifest.json").unlink()
    assert checkpoint.folder_problems(tmp_path / "frozen") == ["manifest.json: it is missing"]


def test_checkpoints_of_older_versions_are_read_unchecked(tmp_path, capsys):
    """They have no manifest. One that Orbax cannot read is an error in words."""
    saved(tmp_path, 4)
    folder = tmp_path / "checkpoints" / "4"
    (folder / "manifest.json").unlink()
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest() == 4 and int(checkpoints.restore(abstract(), 4)["step"]) == 4
    assert "step 4 is of an older version, without a manifest" in capsys.readouterr().out
    assert np.all(checkpoint.restore_numpy(tmp_path, 4, shapes())["a"] == 4)
    (folder / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(Damaged, match=r"4 cannot be read: .*no manifest\.json"):
        checkpoint.restore_numpy(tmp_path, 4, shapes())
    with pytest.raises(Damaged, match=r"4 cannot be read: .*no manifest\.json"):
        checkpoints.restore(abstract(), 4)
    checkpoints.close()


def test_trees_have_a_manifest_and_what_they_were_made_from(tmp_path):
    made_from = {"digest": "abc"}
    checkpoint.save_tree(tmp_path / "frozen", state(3), made_from)
    assert checkpoint.made_from(tmp_path / "frozen") == made_from and checkpoint.made_from(tmp_path) is None
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state())
    assert np.all(checkpoint.restore_tree(tmp_path / "frozen", like)["a"] == 3)
    file = tmp_path / "frozen" / "made_from.json"
    file.write_text(file.read_text().replace("abc", "abd"))
    for read in (lambda: checkpoint.restore_tree(tmp_path / "frozen", like), lambda: checkpoint.made_from(file.parent)):
        with pytest.raises(Damaged, match=r"frozen is damaged: made_from\.json: its contents"):
            read()


def test_a_save_that_failed_is_told_at_once(tmp_path):
    """As on a full disk: files may not become larger than half a megabyte here."""
    large = {"a": jax.random.normal(jax.random.key(0), (1024, 1024))}
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(2, {"a": large["a"][:64]})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        checkpoints.save(4, large)
        while checkpoints.manager.is_saving_in_progress():
            time.sleep(0.01)
        with pytest.raises(SaveFailed) as error:
            checkpoints.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    text = str(error.value)
    assert f"step 4 could not be written into {tmp_path / 'checkpoints'}" in text and "GiB are free" in text
    assert "File too large" in text and "The newest checkpoint is that of step 2" in text
    assert [path.name for path in checkpoints.path.iterdir()] == ["2"]
    checkpoints.check()  # once
    checkpoints.save(6, large)  # the disk has room again
    checkpoints.close()
    assert checkpoint.steps(tmp_path) == [2, 6] and checkpoint.problems(tmp_path, 6) == []


def test_a_tree_that_cannot_be_written_is_told(tmp_path):
    """As on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(SaveFailed, match=r"frozen could not be written.*File too large.*free there.*room"):
            checkpoint.save_tree(tmp_path / "frozen", {"a": np.random.default_rng(0).normal(size=(512, 512))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
