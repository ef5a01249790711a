"""A run whose parts are all in a bucket: first stage, images, cached latents, tokenizer, and the run to begin from."""

import contextlib
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import checkpoint, files, process, recipes, rundir
from ldm_jax.cli import train
from ldm_jax.data import copies, tokenizers
from ldm_jax.errors import Missing, UsageError
from ldm_jax.training import finetune, loop, setup, stopping
from tests import bucket_tools
from tests.bucket_tools import OBJECTS, put_folder
from tests.conditions import test_kept_conditioner as kept
from tests.data_tools import take
from tests.test_pipeline import classes, keep
from tests.training.test_finetune import state_of
from tests.training.test_hosts import finish, metrics, start, wait_for

BUCKET = "gs://bucket"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv(copies.PLACE, str(tmp_path / "copies"))
    with bucket_tools.bucket() as address:
        yield files.at(address)


def make_images(folder):
    folder.mkdir(parents=True)
    for k in range(12):
        Image.new("RGB", (32, 32), (20 * k, 0, 0)).save(folder / f"{k}.png")
    lines = [json.dumps({"file_name": f"{k}.png", "text": f"red {k}"}) for k in range(12)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def text_options(place):
    """Of the smallest recipe of captions; all that it reads is in `place`."""
    return {
        "data.source": "folder", "data.path": f"{place}/images", "data.cache_latents": f"{place}/latents",
        "data.validation_fraction": 0.3, "data.flip": True, "first_stage.checkpoint": f"{place}/first_stage",
        "conditioner.tokenizer": f"{place}/words", "conditioner.vocab_size": 60, "conditioner.null_tokens": "(2, 3)",
    }  # fmt: skip


def text_recipe(place):
    given = [f"--config.{name}={value}" for name, value in text_options(place).items()]
    return recipes.load("quickstart_text:tiny", given)


def test_a_run_from_a_bucket_is_that_from_a_disk(bucket, tmp_path, capsys):
    make_images(tmp_path / "images")
    tokenizers.train_wordpiece([f"red {k}" for k in range(12)], 60, tmp_path / "words")
    put_folder("bucket/images", tmp_path / "images")
    put_folder("bucket/words", tmp_path / "words")
    found = []
    for place, workdir in ((tmp_path, tmp_path / "run"), (bucket, bucket / "run")):
        keep(place / "first_stage", recipes.load("quickstart_first_stage:tiny"))
        config = text_recipe(place)
        _, loaders, frozen = setup.training_run(config, workdir)
        found.append((take(loaders.train(0), 2), frozen))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert found[0][0][0].keys() == {"moments", "tokens", "token_mask"}
    assert {name.split("/")[1] for name in OBJECTS} == {"images", "words", "first_stage", "latents", "run"}
    said = capsys.readouterr().out
    assert "files to write into gs://bucket/latents" in said and "in gs://bucket/latents" in said
    setup.training_run(config, bucket / "next")
    assert "caching" not in capsys.readouterr().out


def test_a_host_without_room_is_told_before_anything_is_encoded(bucket, tmp_path, monkeypatch):
    make_images(tmp_path / "images")
    put_folder("bucket/images", tmp_path / "images")
    tokenizers.train_wordpiece(["red 12"], 60, bucket / "words")
    keep(bucket / "first_stage", recipes.load("quickstart_first_stage:tiny"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30 - 9, 9))
    with pytest.raises(Missing, match=r"room for a copy of gs://bucket/latents, .* 0\.00 GiB are free .*gcsfuse"):
        setup.training_run(text_recipe(bucket), tmp_path / "run")
    assert not [name for name in OBJECTS if name.endswith("array_record")]


def test_first_stages_conditioners_and_what_to_begin_with(bucket, tmp_path):
    """As runs and as exported folders."""
    config = classes()
    run = keep(bucket / "class", config)
    params, frozen, _ = rundir.model_of(config, run)
    rundir.write_exported(tmp_path / "exported", config, params, frozen, "float32")
    put_folder("bucket/exported", tmp_path / "exported")
    for where in ("class", "exported"):
        begun = classes()
        begun.init_from = f"{BUCKET}/{where}"
        begun.first_stage.checkpoint = ""
        assert float(setup.frozen(begun, tmp_path)["latent_scale"]) == float(frozen["latent_scale"])
        taken = []
        finetune.beginning(begun, tmp_path, taken.append)(state_of(begun))
        assert f"init_from gs://bucket/{where}" in taken[0] and len(taken) == 1
    text = keep(bucket / "text", kept.text_model())
    config = kept.text_model(trainable=False, checkpoint=str(text))
    found = setup.frozen(config, tmp_path)["conditioner"]
    jax.tree.map(np.testing.assert_array_equal, found, rundir.model_of(rundir.config_of(text), text)[0]["conditioner"])


PLACES = ("data.path", "data.cache_latents", "data.classes", "conditioner.tokenizer", "first_stage.checkpoint",
          "conditioner.checkpoint", "init_from")  # fmt: skip


@pytest.mark.parametrize("option", PLACES)
def test_options_that_may_be_in_a_bucket(bucket, option, tmp_path):
    def given(address):
        return rundir.leaves_of(recipes.load("quickstart_text:tiny", [f"--config.{option}={address}"]))[option]

    assert given(f"{BUCKET}/x") == f"{BUCKET}/x"
    assert given((tmp_path / "a b").as_uri()) == str(tmp_path / "a b")
    for address in ("s3://b/x", "hf://b/x", "https://b/x"):
        with pytest.raises(UsageError, match=rf"--config\.{option}: {address} is an address, and the only ones"):
            given(address)


def test_options_that_may_not(bucket):
    for option in ("metrics.weights", "loss.lpips_weights"):
        with pytest.raises(UsageError, match=rf"--config\.{option}: gs://b/x is an address, and only a folder or file"):
            recipes.load("quickstart_first_stage:tiny", [f"--config.{option}=gs://b/x"])


def test_the_tokenizer_of_a_hybrid_condition(bucket):
    option = "conditioner.parts.text.tokenizer"
    config = kept.text_model().lock()
    assert rundir.leaves_of(recipes.override(config, [f"--config.{option}={BUCKET}/x"], "it"))[option] == f"{BUCKET}/x"


@pytest.mark.slow
def test_two_hosts_make_latents_in_a_bucket(tmp_path):
    """Each encodes a part, and each reads all of it; a run that comes later encodes nothing."""
    make_images(tmp_path / "data/images")
    small = "from ldm_jax.data import latents; latents.SHARD_EXAMPLES = 3; from ldm_jax.cli import train; train.main()"
    run = ["-c", small, "--config=quickstart_text:tiny"]
    with bucket_tools.bucket_on_disk(tmp_path) as variables:
        tokenizers.train_wordpiece(["red 0 1 2 3 4 5 6 7 8 9"], 60, "gs://data/words")
        first = recipes.load("quickstart_first_stage:tiny")
        trained = keep(tmp_path / "first", first)
        params, frozen, _ = rundir.model_of(first, trained)
        rundir.write_exported(tmp_path / "data/first_stage", first, params, frozen, "float32")
        disks = [variables | {copies.PLACE: str(tmp_path / f"copies_{host}")} for host in (0, 1)]
        given = [f"--config.{name}={value}" for name, value in text_options("gs://data").items()]
        given += [
            "--config.steps=2",
            "--config.every.evaluate=0",
            "--config.every.picture=0",
            "--config.data.workers=1",
        ]
        for name in ("one", "two"):
            texts = finish(*start(tmp_path / name, *given, run=run, env=disks))
            assert ("caching latents: 3 of 3 files" in texts[0]) == (name == "one"), texts[0]
            assert all(("copying gs://data/latents to" in text) == (name == "one") for text in texts), texts
            assert metrics(tmp_path / name).keys() >= {2}
    one, other = (sorted((tmp_path / f"copies_{host}").rglob("*.array_record")) for host in (0, 1))
    assert len(one) == 3 and [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


@pytest.mark.parametrize("code, ends", [(503, stopping.AGAIN), (401, stopping.UNUSABLE)])
def test_how_a_start_without_its_data_ends(bucket, tmp_path, code, ends, capsys, monkeypatch):
    monkeypatch.setattr(process, "setup", lambda *_: None)
    given = ["--config=quickstart_first_stage:tiny", f"--workdir={tmp_path / 'run'}", "--config.data.source=folder"]
    given += [f"--config.data.path={BUCKET}/images", "--config.loss.perceptual_weight=0"]
    with bucket_tools.refusing("bucket/images", bucket_tools.HttpError(code)), pytest.raises(SystemExit) as end:
        train.main(given)
    assert end.value.code == ends
    assert "cannot start: gs://bucket/images could not be read: HttpError: " in capsys.readouterr().err


def test_what_a_run_without_its_data_has_learnt_is_kept(bucket, tmp_path, capsys, monkeypatch):
    """The bucket is away after the second step."""
    monkeypatch.setattr(process, "setup", lambda *_: None)
    make_images(tmp_path / "images")
    put_folder("bucket/images", tmp_path / "images")
    given = ["--config=quickstart_first_stage:tiny", f"--workdir={tmp_path / 'run'}", "--config.data.source=folder"]
    given += [f"--config.data.path={BUCKET}/images", "--config.loss.perceptual_weight=0", "--config.steps=100000"]
    given += ["--config.every.evaluate=0", "--config.every.picture=0", "--config.every.checkpoint=0"]
    given += ["--config.data.workers=0", "--config.data.validation_fraction=0.3"]
    add = loop._Report.add
    with contextlib.ExitStack() as refused:

        def away(self, step, metrics):
            add(self, step, metrics)
            if step == 2:
                refused.enter_context(bucket_tools.refusing("bucket/images", bucket_tools.HttpError(503)))

        monkeypatch.setattr(loop._Report, "add", away)
        with pytest.raises(SystemExit) as end:
            train.main(given)
    assert end.value.code == stopping.AGAIN
    (saved,) = checkpoint.steps(tmp_path / "run")
    assert f"Step {saved} is saved: the same command goes on from there" in capsys.readouterr().err and saved >= 2


@pytest.mark.slow
def test_an_outage_of_one_of_two_hosts_ends_both_so_that_they_are_started_again(tmp_path):
    make_images(tmp_path / "data/images")
    away = tmp_path / "away"
    given = ["--config.data.source=folder", "--config.data.path=gs://data/images", "--config.steps=100000",
             "--config.loss.perceptual_weight=0", "--config.data.validation_fraction=0.3", "--config.data.workers=0",
             "--config.every.evaluate=0", "--config.every.picture=0", "--config.every.checkpoint=0",
             "--config.every.log=1", "--host-timeout=10"]  # fmt: skip
    with bucket_tools.bucket_on_disk(tmp_path) as variables:
        env = [variables, variables | {"FAKE_GCS_AWAY": str(away)}]
        started = start(tmp_path / "run", *given, run=["train.py", "--config=quickstart_first_stage:tiny"], env=env)
        wait_for("step 3/", *started[:1], started[1][0])
        away.touch()
        texts = finish(*started, code=stopping.AGAIN)
    assert "could not be read: ConnectionResetError" in texts[1] and "Traceback" not in texts[1]
    assert re.search(r"host 1 \(.*\) has ended because it could not reach a bucket", texts[0]), texts[0]
