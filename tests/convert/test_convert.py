"""convert.py: bit by bit there and back, what is decided on the way, and errors without a traceback."""

import pickle
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax import config_file, recipes
from ldm_jax.cli import convert
from ldm_jax.convert import compvis
from ldm_jax.convert.safetensors_file import read_safetensors, write_safetensors
from ldm_jax.convert.tensors import KEPT, given
from ldm_jax.convert.torch_reader import read_torch, read_torch_checkpoint
from ldm_jax.convert.torch_writer import write_torch
from ldm_jax.errors import UsageError
from ldm_jax.training import setup
from tests.convert.conversion_tools import assert_same, checkpoint, from_run, manifests, refused, to_run
from tests.convert.test_compvis import RECIPES
from tests.convert.test_torch_reader import Call, Global, Storage, tensor, write_zip
from tests.golden import weights as made_up

LDM, FIRST_STAGE, KL = "celeba_ldm4:tiny", "first_stage_vq_f4:tiny", "quickstart_ldm:tiny"
EMA = "model_ema.diffusion_model"


def restored(run):
    """(config, TrainState without optimiser state, frozen)."""
    config = ConfigDict(config_file.load(run))
    return config, *convert.restore(config, run, None)


def test_ldm(tmp_path, capsys):
    """EMA, scale, step and schedule arrive where training and sampling look for them; both formats come back."""
    state = checkpoint(LDM, scale=0.5)
    write_torch(tmp_path / "m.ckpt", state, step=1234)
    to_run(LDM, tmp_path / "m.ckpt", tmp_path / "run")
    told = capsys.readouterr().out
    assert "660 tensors" in told and "averaged weights: yes" in told and "latent scale 0.50000 (the file's)" in told
    assert "python sample.py --workdir=" in told and "--config.steps=11234" in told
    config = ConfigDict(config_file.load(tmp_path / "run"))
    frozen = setup.frozen(config, tmp_path / "run", kept_only=True)
    run = setup.restore_parts(config, tmp_path / "run", ("step", "params", "ema", "opt_state"))
    assert int(run.step) == 1234 and float(frozen["latent_scale"]) == 0.5
    for part, key in ((run.params, f"{compvis.UNET}time_embed.0.weight"), (run.ema, f"{EMA}time_embed0weight")):
        assert np.array_equal(part["unet"]["time_embed_0"]["kernel"], state[key].T)
    counts = [int(x) for x in jax.tree.leaves(run.opt_state) if x.ndim == 0]
    assert counts == [0, 1234], "Adam's own count, then the learning rate's"
    assert not any(np.any(x) for x in jax.tree.leaves(run.opt_state) if x.ndim)
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    from_run(tmp_path / "run", tmp_path / "back.safetensors")
    found, step = read_torch_checkpoint(tmp_path / "back.ckpt")
    assert step == 1234
    assert_same(found, state)
    assert_same(read_safetensors(tmp_path / "back.safetensors")[0], state)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(tmp_path, dtype):
    state = checkpoint(FIRST_STAGE, dtype=dtype)
    write_safetensors(tmp_path / "m.safetensors", given(state), {"global_step": "7"})
    to_run(FIRST_STAGE, tmp_path / "m.safetensors", tmp_path / "run")
    _, run, _ = restored(tmp_path / "run")
    assert {x.dtype for x in jax.tree.leaves(run.params)} == {np.dtype(np.float32)} and int(run.step) == 7
    stats = run.variables["batch_stats"]["main_3"]["mean"]
    assert np.array_equal(stats, state["loss.discriminator.main.3.running_mean"].astype(np.float32))
    from_run(tmp_path / "run", tmp_path / "back.pth")
    assert_same(read_torch(tmp_path / "back.pth"), state)


def test_first_stage_inside_an_ldm(tmp_path, capsys):
    """Taken out of the whole, with an untrained discriminator, and fit for --config.first_stage.checkpoint."""
    state = checkpoint(LDM)
    write_torch(tmp_path / "m.ckpt", state, step=3)
    to_run(FIRST_STAGE, tmp_path / "m.ckpt", tmp_path / "run")
    assert "no discriminator in it" in capsys.readouterr().out
    config = config_file.load(tmp_path / "run")
    assert config["task"] == "first_stage"
    ldm = recipes.load("celeba_ldm4:tiny").unlock()
    ldm.first_stage.checkpoint = str(tmp_path / "run")
    found = setup.frozen(ldm, tmp_path / "none")["first_stage"]["params"]["quantize"]["embedding"]["embedding"]
    assert np.array_equal(found, state["first_stage_model.quantize.embedding.weight"])
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    own = {k.removeprefix("first_stage_model."): v for k, v in state.items() if k.startswith("first_stage_model.")}
    assert_same(read_torch(tmp_path / "back.ckpt"), own)


def test_without_ema(tmp_path, capsys):
    """The raw weights stand in for the averaged ones, and none are made up on the way back."""
    state = checkpoint(LDM, ema=False)
    write_torch(tmp_path / "m.ckpt", state)
    to_run(LDM, tmp_path / "m.ckpt", tmp_path / "run")
    assert "none in the file; the raw ones stand in" in capsys.readouterr().out
    _, run, frozen = restored(tmp_path / "run")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), run.params, run.ema)
    assert all(jax.tree.leaves(same)) and int(run.step) == 4 and float(frozen["latent_scale"]) == 1.0
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    assert_same(read_torch(tmp_path / "back.ckpt"), state)


def test_ema_that_the_recipe_does_not_want(tmp_path, capsys):
    state = checkpoint(LDM)
    write_torch(tmp_path / "m.ckpt", state)
    to_run(LDM, tmp_path / "m.ckpt", tmp_path / "run", "--config.ema.decay=0.0")
    assert "in the file but not used" in capsys.readouterr().out
    assert restored(tmp_path / "run")[1].ema == {}
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    assert_same(read_torch(tmp_path / "back.ckpt"), state)


def test_a_run_of_our_own(tmp_path):
    """Written without a list of keys to follow: everything that the original would have."""
    state = checkpoint(LDM)
    write_torch(tmp_path / "m.ckpt", state, step=7)
    to_run(LDM, tmp_path / "m.ckpt", tmp_path / "run")
    (tmp_path / "run" / KEPT).unlink()
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    assert_same(read_torch(tmp_path / "back.ckpt"), state)


def test_latent_scale_of_a_kl_model_must_be_known(tmp_path, capsys):
    write_torch(tmp_path / "m.ckpt", checkpoint(KL))
    with refused(capsys, r"no latent scale.*--config\.latent_scale=NUMBER"):
        to_run(KL, tmp_path / "m.ckpt", tmp_path / "run")
    to_run(KL, tmp_path / "m.ckpt", tmp_path / "run", "--config.latent_scale=0.22")
    assert float(restored(tmp_path / "run")[2]["latent_scale"]) == np.float32(0.22)


@pytest.mark.parametrize("option", ["first_stage.patch", "unet.context"])
def test_what_the_original_cannot_hold_is_not_written(option, tmp_path):
    config = recipes.load("demo_class:tiny").unlock()
    if option == "unet.context":
        config.first_stage.patch = 1
    with pytest.raises(UsageError, match=rf"config\.{option}.*--export"):
        convert._check_writable(config, tmp_path / "m.ckpt")


@pytest.fixture(scope="module")
def ldm_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "m.ckpt"
    write_torch(path, checkpoint(LDM), step=5)
    return path


def test_truncated_file(ldm_file, tmp_path, capsys):
    (tmp_path / "cut.ckpt").write_bytes(ldm_file.read_bytes()[:100_000])
    with refused(capsys, r"cut\.ckpt cannot be read as a PyTorch file"):
        to_run(LDM, tmp_path / "cut.ckpt", tmp_path / "run")
    assert not list(tmp_path.glob("run*"))


def test_damaged_numbers(ldm_file, tmp_path, capsys):
    data = bytearray(ldm_file.read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "bad.ckpt").write_bytes(data)
    with refused(capsys, r"is damaged \(checksum\)"):
        to_run(LDM, tmp_path / "bad.ckpt", tmp_path / "run")


def test_another_architecture_shows_both_lists(ldm_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        to_run(LDM, ldm_file, tmp_path / "run", "--config.unet.num_res_blocks=2")
    text = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "missing (" in text and "unexpected (" in text and "other shape (" in text
    assert "model.diffusion_model.input_blocks.10.0." in text and "... and " in text
    assert len(text.splitlines()) < 70 and not (tmp_path / "run").exists()


def test_another_schedule(ldm_file, tmp_path, capsys):
    with refused(capsys, r"noise schedule has betas of 1000 steps.*config\.diffusion\.start"):
        to_run(LDM, ldm_file, tmp_path / "run", "--config.diffusion.end=0.02")


def test_lightning_checkpoint_of_foreign_classes_and_nothing_of_it_runs(tmp_path):
    """Callbacks, optimiser state and an attack around the state dict: only tensors are looked at."""
    state = checkpoint(FIRST_STAGE)
    storages, tensors = [], {}
    kinds = {np.dtype(np.float32): "FloatStorage", np.dtype(np.int64): "LongStorage", np.dtype(float): "DoubleStorage"}
    for i, (key, a) in enumerate(state.items()):
        storages.append(Storage(kinds[a.dtype], str(i), a.reshape(-1)))
        strides = tuple(s // a.itemsize for s in np.ascontiguousarray(a).strides) if a.ndim else ()
        tensors[key] = tensor(storages[-1], a.shape, strides)
    trap = tmp_path / "executed"
    whole = {
        "epoch": 3,
        "global_step": 4321,
        "callbacks": {Global("pytorch_lightning", "ModelCheckpoint"): {"best": Call(Global("pathlib", "Path"), "x")}},
        "hyper_parameters": Call(Global("omegaconf.dictconfig", "DictConfig"), {"a": 1}, state={"b": 2}),
        "attack": Call(Global("os", "system"), f"touch {trap}"),
        "state_dict": tensors,
    }
    write_zip(tmp_path / "m.ckpt", whole, storages)
    to_run(FIRST_STAGE, tmp_path / "m.ckpt", tmp_path / "run")
    assert not trap.exists() and int(restored(tmp_path / "run")[1].step) == 4321
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    assert_same(read_torch(tmp_path / "back.ckpt"), state)


def test_a_pickle_that_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "m.ckpt").write_bytes(pickle.dumps({"a": 1}))
    with refused(capsys, "neither a zip file nor PyTorch's older format"):
        to_run(LDM, tmp_path / "m.ckpt", tmp_path / "run")


def test_nothing_is_overwritten(ldm_file, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with refused(capsys, "exists already"):
        to_run(LDM, ldm_file, tmp_path / "full")
    assert (tmp_path / "full" / "x").exists()
    with refused(capsys, "does not exist"):
        to_run(LDM, tmp_path / "absent.ckpt", tmp_path / "run")


def test_a_folder_of_somebody_else_is_not_deleted(ldm_file, tmp_path, capsys):
    """TARGET.partial that is there already: of another conversion, or of the user."""
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "mine").touch()
    with refused(capsys, r"run\.partial exists already"):
        to_run(LDM, ldm_file, tmp_path / "run")
    assert (tmp_path / "run.partial" / "mine").exists() and not (tmp_path / "run").exists()


def test_a_mistake_of_ours_keeps_its_traceback(ldm_file, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(convert, "_tell", broken)
    with pytest.raises(ValueError, match="a bug"):
        to_run(LDM, ldm_file, tmp_path / "run")


@pytest.mark.parametrize(
    "argv,message",
    [
        (["--from", "x.ckpt", "--to", "y"], "give its recipe: --config=NAME"),
        (["--config=configs/none.py", "--from", "x", "--to", "y"], "configs/none.py"),
        (["--config=configs/celeba_ldm4.py:huge", "--from", "x", "--to", "y"], "unknown variant 'huge'"),
        (["--config=configs/celeba_ldm4.py", "--from", "x", "--to", "y", "--config.nonsense=1"], "nonsense"),
        (["--config=configs/celeba_ldm4.py", "--from", "x", "--to", "y", "--no-ema"], "belong to writing"),
        (["--from", "x", "--to", "y", "--frm"], "unexpected: --frm"),
    ],
)
def test_wrong_arguments(argv, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(SystemExit) as stopped:
        convert.main(argv)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["first_stage__kl-f8", "ldm__celeba256"])
def test_full_size_there_and_back(tmp_path, model):
    state = {key: np.asarray(made_up.make_weight(key, shape)) for key, shape in manifests()[model].items()}
    config = RECIPES[model]
    state |= {k: v for k, v in checkpoint(LDM).items() if k in state and v.ndim == 1 and "." not in k}
    write_torch(tmp_path / "m.ckpt", state, step=5)
    to_run(config, tmp_path / "m.ckpt", tmp_path / "run")
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    assert_same(read_torch(tmp_path / "back.ckpt"), state)
