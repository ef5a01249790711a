"""Run directories: what is checked when a model is read, and `convert.py --check`."""

import shutil

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import checkpoint, manifest, recipes, rundir
from ldm_jax.cli import convert
from ldm_jax.errors import Damaged


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A first stage with two checkpoints."""
    folder = tmp_path_factory.mktemp("made")
    config = recipes.load("quickstart_first_stage:tiny")
    checkpoint.keep_config(folder, config.to_dict())
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), rundir.params_shapes(config))
    for step in (1, 2):
        checkpoint.save_from_numpy(folder, step, {"params": params})
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(made, tmp_path / "run")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def checked(run, capsys):
    """(exit code, lines) of convert.py --check."""
    with pytest.raises(SystemExit) as end:
        convert.main(["--check", str(run)])
    return end.value.code, capsys.readouterr().out.splitlines()


def test_a_model_of_damaged_files_is_not_read(run):
    """Nothing moves, and the message says which checkpoint can be had."""
    flip(run / "checkpoints" / "2" / "default" / "manifest.ocdbt")
    with pytest.raises(Damaged, match=r"2 is damaged: default/manifest\.ocdbt.* --checkpoint=1 "):
        rundir.model_of(rundir.config_of(run), run)
    rundir.model_of(rundir.config_of(run), run, step=1)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"1", "2"}


def test_an_exported_model_is_compared_too(run, tmp_path, capsys):
    config = rundir.config_of(run)
    _, frozen, _ = rundir.model_of(config, run)
    folder = tmp_path / "exported"
    rundir.write_exported(folder, config, {}, frozen, "float32")
    assert rundir.model_of(config, folder)[2] is None
    assert checked(folder, capsys) == (0, ["config.json: ok", "model.safetensors: ok"])
    good = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(good.replace(b'"seed": 0', b'"seed": 1'))  # one bit, and still a recipe
    with pytest.raises(Damaged, match=r"config\.json is damaged"):
        ldm_jax.load(folder)
    assert checked(folder, capsys)[1][0].startswith("BAD config.json: ")
    (folder / "config.json").write_bytes(good)
    flip(folder / "model.safetensors")
    with pytest.raises(Damaged, match=r"model\.safetensors: its contents .* remove .*manifest\.json"):
        rundir.model_of(config, folder)
    assert checked(folder, capsys)[0] == 1
    (folder / "manifest.json").unlink()  # of an older version
    rundir.model_of(config, folder)
    code, lines = checked(folder, capsys)
    assert code == 0 and lines[1].startswith("model.safetensors: not checked: it has no manifest.json")


def test_check_has_a_line_for_each_part(run, capsys):
    checkpoint.save_tree(run / "frozen", {"latent_scale": np.float32(1)})
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "vocab.txt").write_text("[PAD]")
    manifest.write(run / "tokenizer")
    good = ["config.json: ok", "tokenizer: ok", "checkpoints/1: ok", "checkpoints/2: ok", "frozen: ok"]
    assert checked(run, capsys) == (0, good)
    flip(run / "frozen" / "_METADATA")
    (run / "checkpoints" / "1" / "default" / "_METADATA").unlink()
    (run / "config.json").write_text("{")
    flip(run / "tokenizer" / "vocab.txt")
    code, lines = checked(run, capsys)
    assert lines.pop(1).startswith("BAD tokenizer: vocab.txt: its contents")
    assert code == 1 and lines[2] == "checkpoints/2: ok"
    assert lines[0].startswith("BAD config.json: ") and "is not the configuration of a run" in lines[0]
    assert lines[1] == "BAD checkpoints/1: default/_METADATA: it is missing"
    assert lines[3].startswith("BAD frozen: _METADATA: its contents")


def test_a_diffusion_model_without_its_first_stage_is_bad(tmp_path, capsys):
    checkpoint.keep_config(tmp_path, recipes.load("quickstart_ldm:tiny").to_dict())
    checkpoint.save_from_numpy(tmp_path, 1, {"params": {"a": np.zeros(1)}})
    code, lines = checked(tmp_path, capsys)
    assert code == 1 and lines[2].startswith("BAD frozen: it is missing")


def test_check_goes_alone(tmp_path, capsys):
    for wrong in (["--check", "x", "--to", "y"], ["--check", "x", "--config=quickstart_ldm"], ["--to", "y"]):
        with pytest.raises(SystemExit) as end:
            convert.parse(wrong)
        assert end.value.code == 2 and "--check" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        convert.main(["--check", str(tmp_path / "none")])
    assert end.value.code == 2 and "is not a folder" in capsys.readouterr().err


def test_a_model_with_other_tokens_cannot_guide(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert rundir._same_tokens(one, other)  # neither has a tokenizer
    for folder in (one, other):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    assert rundir._same_tokens(one, other)
    (other / "tokenizer.json").write_text('{"vocab": 1}')
    assert not rundir._same_tokens(one, other)
    (other / "tokenizer.json").unlink()
    assert not rundir._same_tokens(one, other)
