"""Trained models that come with the package: found by name at every door, unless there is such a path on disk."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

import ldm_jax
from ldm_jax import recipes, rundir, shipped
from ldm_jax.cli import convert, evaluate, sample
from ldm_jax.errors import Missing
from ldm_jax.training import finetune
from ldm_jax.web.models import Models

NAME = "shapes_class"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_new_folder_is_found_without_further_ado(tmp_path, monkeypatch):
    assert NAME in shipped.names()
    (tmp_path / "box" / "new").mkdir(parents=True)
    (tmp_path / "box" / "new" / "config.json").write_text("{}")
    (tmp_path / "box" / "no model").mkdir()
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "box")
    assert shipped.names() == ["new"] and shipped.find("new") == tmp_path / "box" / "new"


def test_a_path_on_disk_comes_first(tmp_path):
    assert shipped.find(NAME) == shipped.FOLDER / NAME and shipped.is_name(NAME)
    (tmp_path / NAME).mkdir()
    assert shipped.find(NAME) == type(tmp_path)(NAME) and not shipped.is_name(NAME)
    with pytest.raises(Missing, match=f"^the model: {NAME} is not a run directory"):
        ldm_jax.load(NAME)


@pytest.mark.parametrize("run", ["shapes_clas", "pretrained/shapes_class", "", f"{NAME}/config.json"])
def test_no_other_path_is_a_name(run):
    assert shipped.find(run) == type(shipped.FOLDER)(run)


def test_a_wrong_name_lists_the_right_ones(capsys):
    words = ["shapes_clas", "by name: ", NAME]
    with pytest.raises(Missing) as error:
        ldm_jax.load("shapes_clas")
    told = [str(error.value)]
    for main, argv in (
        (sample.main, ["--workdir=shapes_clas"]),
        (evaluate.main, ["shapes_clas", "--reference=."]),
        (convert.main, ["--from=shapes_clas", "--to=there"]),
        (convert.main, ["--check=shapes_clas"]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        told.append(f"{ended.value.code} {capsys.readouterr().err}")
    for text in told:
        assert all(word in text for word in words) and "Traceback" not in text


def test_a_model_by_name_is_that_of_its_folder(monkeypatch):
    read = []
    monkeypatch.setattr(rundir, "_read_exported", lambda config, folder: read.append(folder) or ({}, {}))
    pipe = ldm_jax.load(NAME)
    assert str(pipe.path) == NAME and pipe.weights == "exported" and read == [shipped.FOLDER / NAME]
    assert pipe.tokenizer == shipped.FOLDER / NAME / "tokenizer"
    assert list(Models([NAME]).forms) == [NAME]


def test_commands_write_nothing_into_the_package(capsys, tmp_path):
    """Samples of a model by name are in samples/NAME, its evaluation in evaluation/, of the present folder."""
    assert str(shipped.made_of(NAME)) == f"samples/{NAME}" and str(shipped.made_of("runs/a")) == "runs/a"
    assert str(sample.samples_of(NAME)) == f"samples/{NAME}" and str(sample.samples_of("runs/a")) == "runs/a/samples"
    assert str(evaluate.out_of(SimpleNamespace(out=None), NAME)) == "evaluation"
    assert str(evaluate.out_of(SimpleNamespace(out=None), "runs/a")) == "runs/a/evaluation"
    with pytest.raises(SystemExit) as ended:
        convert.main([f"--check={NAME}"])
    assert ended.value.code == 0 and "model.safetensors: ok" in capsys.readouterr().out
    convert.main([f"--from={NAME}", "--to=exported", "--export", "--dtype=bfloat16"])
    assert (tmp_path / "exported" / "model.safetensors").is_file()


def test_a_run_begins_with_a_model_by_name():
    config = recipes.load("demo_class", [f"--config.init_from={NAME}"])
    params, step = finetune.parameters(config, config.init_from)
    assert "unet/out_2/kernel" in params and step is None


def test_setup_takes_every_file_of_the_models(tmp_path):
    """What git has of pretrained/ is what the patterns of setup.py take; samples that a command left there are not."""
    root = shipped.FOLDER.parent
    patterns = json.loads(
        (root / "setup.py").read_text().partition('"ldm_jax.pretrained": [')[2].partition("]")[0].join("[]")
    )
    (tmp_path / "box").mkdir()
    made = shutil.copytree(shipped.FOLDER / NAME, tmp_path / "box" / NAME)
    for left in ("samples", "evaluation"):
        (made / left).mkdir(exist_ok=True)
        (made / left / "000000.png").touch()
    (made / "tokenizer").mkdir(exist_ok=True)
    (made / "tokenizer" / "tokenizer.json").touch()
    taken = {str(p.relative_to(made)) for pattern in patterns for p in (tmp_path / "box").glob(pattern) if p.is_file()}
    assert taken == {"README.md", "config.json", "manifest.json", "model.safetensors", "tokenizer/tokenizer.json"}
    listed = subprocess.run(["git", "ls-files", "pretrained"], cwd=root, capture_output=True, text=True)
    tracked = {root / line for line in listed.stdout.splitlines()}
    assert tracked <= {path for pattern in patterns for path in shipped.FOLDER.glob(pattern)}
