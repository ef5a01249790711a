"""Run directories: what is checked when a model is read, and `convert.py --check`."""

import shutil

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import checkpoint, config_file, manifest, recipes, rundir
from ldm_jax.cli import convert
from ldm_jax.errors import ConfigError, Damaged
from ldm_jax.training import setup


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A first stage with two checkpoints."""
    folder = tmp_path_factory.mktemp("made")
    config = recipes.load("quickstart_first_stage:tiny")
    config_file.save(folder, config.to_dict())
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


def test_a_damaged_tokenizer_is_not_exported(tmp_path):
    """By neither of the two ways, the command and Pipeline.save."""
    tokenizer, folder = tmp_path / "tokenizer", tmp_path / "exported"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("[PAD]")
    manifest.write(tokenizer)
    flip(tokenizer / "vocab.txt")
    with pytest.raises(Damaged, match=r"tokenizer is damaged: vocab\.txt.* from a copy"):
        rundir.write_exported(folder, recipes.load("quickstart_text:tiny"), {}, {}, "float32", tokenizer)
    assert not folder.exists()


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


def channels_recipe(**options):
    given = [f"--config.{name}={value}" for name, value in options.items()]
    return recipes.load("quickstart_ldm:tiny", ["--config.latent_scale_kind=channels", *given])


def test_a_shift_and_a_scale_of_each_channel_are_kept(tmp_path):
    """Given or measured they are in frozen/ and in exported models, in float32, and are compared."""
    config = channels_recipe(latent_channel_shift=(0.1,), latent_channel_scale=(2.0, 3.0, 4.0))
    shapes = rundir.frozen_shapes(config)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    frozen = setup.task(config).prepare(zeros, iter(()), print)
    np.testing.assert_array_equal(frozen["latent_shift"], np.float32([0.1] * 3))
    np.testing.assert_array_equal(frozen["latent_scale"], np.float32([2, 3, 4]))
    checkpoint.save_tree(tmp_path / "run" / "frozen", frozen)
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), rundir.params_shapes(config))
    config.data.cache_latents = "/elsewhere/latents"
    rundir.write_exported(tmp_path / "folder", config, params, frozen, "bfloat16")
    assert config_file.load(tmp_path / "folder")["data"]["cache_latents"] == ""  # of this machine alone
    assert (tmp_path / "folder" / rundir.WEIGHTS).stat().st_mode & 0o777 == 0o644  # others may read it, too
    for found in (rundir.kept_frozen(config, tmp_path / "run"), rundir.model_of(config, tmp_path / "folder")[1]):
        assert rundir.same_scale(found, frozen) and found["latent_shift"].dtype == np.float32
    other = frozen | {"latent_shift": frozen["latent_shift"] + np.float32([0, 0, 0.01])}
    scalar = {"first_stage": frozen["first_stage"], "latent_scale": np.float32(2)}
    for wrong in (other, scalar):
        with pytest.raises(ConfigError, match=r"latent scale is .* of the classifier, .* shift by \(0\.1, "):
            rundir.check_same_weights(wrong, frozen, "runs/ldm")
    told = rundir.latent_differences(recipes.load("quickstart_ldm:tiny"), config)
    remedy = "train with --config.latent_scale_kind=channels"
    assert told == [f"latent_scale_kind: 'scalar' here, 'channels' there; {remedy}"]


@pytest.mark.parametrize("shift,scale", [((0.1, 0.2), (1.0,)), ((), (1.0,)), ((0.1,), (0.0,))])
def test_numbers_of_channels_that_do_not_fit(shift, scale):
    with pytest.raises(ConfigError, match=r"latent_channel_\w+=\(.* must be 3 finite numbers"):
        setup.task(channels_recipe(latent_channel_shift=shift, latent_channel_scale=scale))


def test_numbers_of_channels_belong_to_channels():
    scalar = recipes.load("quickstart_ldm:tiny", ["--config.latent_channel_scale=(1.0,)"])
    with pytest.raises(ConfigError, match=r"belong to config\.latent_scale_kind='channels'"):
        setup.task(scalar)


def test_options_of_channels_decide_what_frozen_is():
    """Those of older versions, which had none, are the same."""
    usual = rundir.frozen_options(recipes.load("quickstart_ldm:tiny"))
    assert not config_file.YOUNGER_LATENTS.keys() & usual.keys()
    measured, given = channels_recipe(), channels_recipe(latent_channel_shift=(0.1,), latent_channel_scale=(1.0,))
    assert "data.source" in rundir.frozen_options(measured) and "data.source" not in rundir.frozen_options(given)
    assert rundir.frozen_options(given)["latent_channel_shift"] == [0.1]


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
    config_file.save(tmp_path, recipes.load("quickstart_ldm:tiny").to_dict())
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
