"""Names, shapes and settings of diffusers' own models, recorded by make_diffusers_golden.py, and a forward pass."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from ldm_jax import build, recipes, tree
from ldm_jax.convert import compvis, diffusers, names
from ldm_jax.convert import diffusers_settings as settings
from ldm_jax.convert.safetensors_file import read_safetensors, write_safetensors
from ldm_jax.convert.tensors import components, fill, given, read, weights_of
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.errors import UsageError
from ldm_jax.training import setup
from tests.convert.conversion_tools import HERE, checkpoint, from_run, recipe, refused, shapes_of, template, to_run
from tests.golden import weights as made_up
from tests.golden_tools import nchw, nhwc, rel, run_once

GOLDEN = json.loads((HERE / "diffusers.json").read_text())
MODELS = {
    "celeba/vqvae": "celeba_ldm4:tiny",
    "celeba/unet": "celeba_ldm4:tiny",
    "vq_f8": "first_stage_vq_f8:tiny",
    "vq_f4_noattn": "first_stage_vq_f4_noattn:tiny",
    "text/vqvae": "text2img_ldm8:tiny",
    "text/unet": "text2img_ldm8:tiny",
    "text/bert": "text2img_ldm8:tiny",
}


def parts(name):
    """What a folder of the recipe has."""
    config = recipe(name)
    size = build.latent_shape(config)[0] if config.task == "ldm" else None
    return components(config, template(name, ema=False), size)


def component(model):
    folder = model.rpartition("/")[2]
    found = parts(MODELS[model])
    return next(c for c in found if c.folder == folder or len(found) == 1)


@pytest.mark.parametrize("model", MODELS)
def test_names_shapes_and_settings(tmp_path, model):
    """What we write has every key and shape of the library's model, and settings that make it."""
    ours = component(model)
    state = checkpoint(MODELS[model], ema=False)
    diffusers.write_component(tmp_path, ours, {k: ((a.dtype, a.shape), lambda a=a: a) for k, a in state.items()})
    tensors, _ = read_safetensors(next(tmp_path.glob("*.safetensors")))
    assert {key: list(array.shape) for key, array in tensors.items()} == GOLDEN[model]["keys"]
    written = json.loads((tmp_path / "config.json").read_text())
    different = {k for k, v in written.items() if k in GOLDEN[model]["config"] and GOLDEN[model]["config"][k] != v}
    assert different <= {"sample_size", "_diffusers_version", "architectures", "scaling_factor"}


def folder_of(path, model, old_names=False, **changes):
    """A folder as the library writes it, with the made-up weights of `model`/<key>. changes: of its config.json."""
    path.mkdir(parents=True)
    recorded = GOLDEN[model]
    (path / "config.json").write_text(json.dumps(recorded["config"] | {"_class_name": component(model).kind} | changes))
    arrays = {key: made_up.make_weight(f"{model}/{key}", shape) for key, shape in recorded["keys"].items()}
    if old_names:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            arrays = {k.replace(f".{new}.", f".{old}.") if ".attentions." in k else k: a for k, a in arrays.items()}
    given = {k: ((a.dtype, a.shape), lambda a=a: a) for k, a in arrays.items()}
    diffusers.write_safetensors(path / "diffusion_pytorch_model.safetensors", given, {})


@pytest.fixture
def celeba(tmp_path):
    for part in ("unet", "vqvae"):
        folder_of(tmp_path / "celeba" / part, f"celeba/{part}")
    scheduler = tmp_path / "celeba" / "scheduler"
    scheduler.mkdir()
    text = json.dumps(diffusers.scheduler_config(recipe("celeba_ldm4").diffusion))
    (scheduler / "scheduler_config.json").write_text(text)
    return tmp_path / "celeba"


def test_the_unet_computes_what_the_librarys_does(celeba):
    config, state, frozen = shapes_of("celeba_ldm4:tiny")
    source = read(celeba, config, template("celeba_ldm4:tiny", ema=False), build.latent_shape(config)[0])
    params = fill(source, config, state, frozen, build.schedule(config).betas)[0]["unet"]
    with np.load(HERE / "diffusers_unet.npz") as golden:
        model = build.unet(config)
        y = run_once(lambda p, z, t: model.apply({"params": p}, z, t), params, nhwc(golden["z"]), golden["t"])
        assert rel(nchw(y), golden["y"]) < 1e-4


def of_groups(name, folder, parts):
    """(config, weights) of a folder of these parts whose normalisation has 8 groups."""
    for part in parts:
        folder_of(folder / part, f"{folder.name}/{part}", **({} if part == "bert" else {"norm_num_groups": 8}))
    overrides = ["--config.unet.norm_groups=8", "--config.first_stage.norm_groups=8"]
    config = recipes.load(name, overrides)
    state, frozen = setup.abstract_run(config)
    source = read(folder, config, weights_of(config, state, frozen, False), build.latent_shape(config)[0])
    return config, fill(source, config, state, frozen, build.schedule(config).betas)[0]


def test_another_number_of_groups_computes_what_the_librarys_does(tmp_path):
    """Both kinds of UNet and an autoencoder."""
    golden = dict(np.load(HERE / "diffusers_groups.npz"))
    config, weights = of_groups("celeba_ldm4:tiny", tmp_path / "celeba", ("unet", "vqvae"))
    model = build.unet(config)
    y = run_once(
        lambda p, z, t: model.apply({"params": p}, z, t), weights["unet"], nhwc(golden["celeba_z"]), golden["t"]
    )
    assert rel(nchw(y), golden["celeba_y"]) < 1e-4
    config, weights = of_groups("text2img_ldm8:tiny", tmp_path / "text", ("unet", "vqvae", "bert"))
    model, given = build.unet(config), (nhwc(golden["text_z"]), golden["t"], golden["context"])
    y = run_once(lambda p, z, t, c: model.apply({"params": p}, z, t, c), weights["unet"], *given)
    assert rel(nchw(y), golden["text_y"]) < 1e-4
    stage = build.first_stage(config)
    found, aux = run_once(stage.apply, {"params": weights["first_stage"]}, nhwc(golden["image"]))
    assert rel(nchw(aux["latents"]), golden["mean"]) < 1e-4 and rel(nchw(found), golden["reconstruction"]) < 1e-4


def test_there_and_back_bit_by_bit(celeba, tmp_path):
    to_run("celeba_ldm4:tiny", celeba, tmp_path / "run")
    from_run(tmp_path / "run", tmp_path / "back")
    for part in ("unet", "vqvae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        before, after = (read_safetensors(root / file)[0] for root in (celeba, tmp_path / "back"))
        assert before.keys() == after.keys()
        assert all(before[k].tobytes() == after[k].tobytes() and before[k].shape == after[k].shape for k in before)
    index = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert index["_class_name"] == "LDMPipeline" and index["unet"] == ["diffusers", "UNet2DModel"]
    from_run(tmp_path / "run", tmp_path / "model.safetensors")
    assert {"betas", "model.diffusion_model.out.2.bias"} <= read_safetensors(tmp_path / "model.safetensors")[0].keys()


def test_old_attention_names_and_a_lone_autoencoder(tmp_path, capsys):
    folder_of(tmp_path / "old", "vq_f8", old_names=True)
    assert any(".attentions.0.query." in k for k in read_safetensors(next((tmp_path / "old").glob("*.saf*")))[0])
    to_run("first_stage_vq_f8:tiny", tmp_path / "old", tmp_path / "run")
    assert "no discriminator in it: fine-tuning begins with an untrained one" in capsys.readouterr().out
    from_run(tmp_path / "run", tmp_path / "back")
    after = read_safetensors(tmp_path / "back" / "diffusion_pytorch_model.safetensors")[0]
    assert all(a.tobytes() == made_up.make_weight(f"vq_f8/{k}", a.shape).tobytes() for k, a in after.items())


@pytest.fixture
def text(tmp_path):
    for part in ("unet", "vqvae", "bert"):
        folder_of(tmp_path / "text" / part, f"text/{part}")
    return tmp_path / "text"


def test_text_model_with_its_tokenizer(text, tmp_path):
    (text / "tokenizer").mkdir()
    (text / "tokenizer" / "vocab.txt").write_text("[PAD]\n")
    to_run("text2img_ldm8:tiny", text, tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer" / "vocab.txt").exists()
    from_run(tmp_path / "run", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer" / "vocab.txt").read_text() == "[PAD]\n"
    for part, file in (("bert", "model"), ("unet", "diffusion_pytorch_model"), ("vqvae", "diffusion_pytorch_model")):
        for key, array in read_safetensors(tmp_path / "back" / part / f"{file}.safetensors")[0].items():
            assert array.tobytes() == made_up.make_weight(f"text/{part}/{key}", array.shape).tobytes(), key
    kept = json.loads((tmp_path / "back" / "vqvae" / "config.json").read_text())
    assert kept["scaling_factor"] == 0.18215


@pytest.mark.parametrize("new_order", [False, True])
def test_qkv(new_order):
    qkv = np.arange(24 * 8.0).reshape(24, 8, 1)
    q, k, _ = parts = diffusers.split_qkv(qkv, heads=2, new_order=new_order)
    assert np.array_equal(diffusers.join_qkv(parts, 2, new_order), qkv)
    # Head 1's first query is row 4 when q, k, v come first, and row 12 = 3 x 4 when heads do.
    assert q[4, 0] == qkv[4 if new_order else 12, 0, 0] and k[0, 0] == qkv[8 if new_order else 4, 0, 0]
    bias = qkv[:, 0, 0]
    assert np.array_equal(diffusers.join_qkv(diffusers.split_qkv(bias, 2, new_order), 2, new_order), bias)


def test_other_settings_are_refused(celeba, tmp_path, capsys):
    path = celeba / "unet" / "config.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"attention_head_dim": 8}))
    with refused(capsys, r"another UNet2DModel.*\n.*attention_head_dim: 8 in the folder, 32 by"):
        to_run("celeba_ldm4:tiny", celeba, tmp_path / "run")
    path.write_text(json.dumps(found))
    path = celeba / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.012}))
    with refused(capsys, r"beta_end: 0\.012 in the folder, 0\.0195 by the config"):
        to_run("celeba_ldm4:tiny", celeba, tmp_path / "run")
    with refused(capsys, r"holds no UNet2DConditionModel.*it holds scheduler, unet, vqvae"):
        to_run("text2img_ldm8:tiny", celeba, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def shards(folder, variant=""):
    """The weights of a folder in two files and their index, as the library cuts them."""
    whole = folder / "diffusion_pytorch_model.safetensors"
    arrays = {key: array.copy() for key, array in read_safetensors(whole)[0].items()}
    whole.unlink()
    places = {}
    for i, keys in enumerate((sorted(arrays)[::2], sorted(arrays)[1::2])):
        name = f"diffusion_pytorch_model-0000{i + 1}-of-00002{variant}.safetensors"
        write_safetensors(folder / name, given({key: arrays[key] for key in keys}), {})
        places |= dict.fromkeys(keys, name)
    index = folder / f"diffusion_pytorch_model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return arrays, index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards(tmp_path, variant):
    folder_of(tmp_path / "vae", "vq_f8")
    arrays, _ = shards(tmp_path / "vae", variant)
    found, notes = diffusers._tensors(tmp_path / "vae")
    assert found.keys() == arrays.keys() and all(np.array_equal(found[k], arrays[k]) for k in arrays)
    assert ("fp16" in "".join(notes)) == bool(variant)


def test_shards_that_are_not_whole(tmp_path):
    folder_of(tmp_path / "vae", "vq_f8")
    _, index = shards(tmp_path / "vae")
    whole = json.loads(index.read_text())
    first = next(iter(whole["weight_map"]))
    for weight_map, message in [
        ({first: "../secret.safetensors"}, "which is no file beside it"),
        (whole["weight_map"] | {"a.key": whole["weight_map"][first]}, "lacks 1 tensors .* names, first a.key"),
        ({first: "gone.safetensors"}, "gone.safetensors, which .*index.json names, is not there"),
        ({}, 'has no "weight_map"'),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UsageError, match=message):
            diffusers._tensors(tmp_path / "vae")


def test_variants_stand_in_for_the_full_file(tmp_path, capsys):
    """They are read in their own precision, and named; with a full file beside them they are not looked at."""
    folder_of(tmp_path / "vae", "vq_f8")
    full = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    half = {key: array.astype(ml_dtypes.bfloat16) for key, array in read_safetensors(full)[0].items()}
    write_safetensors(tmp_path / "vae" / "diffusion_pytorch_model.bf16.safetensors", given(half), {})
    assert diffusers._tensors(tmp_path / "vae")[1] == []
    full.unlink()
    to_run("first_stage_vq_f8:tiny", tmp_path / "vae", tmp_path / "run")
    assert "weights of diffusion_pytorch_model.bf16.safetensors, bf16" in capsys.readouterr().out
    from_run(tmp_path / "run", tmp_path / "back")
    after = read_safetensors(tmp_path / "back" / "diffusion_pytorch_model.safetensors")[0]
    assert after.keys() == half.keys() and all(after[k].tobytes() == half[k].tobytes() for k in half)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "config.json"])
@pytest.mark.parametrize(
    "content,message",
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS pointer.*git lfs pull"),
        ("<!DOCTYPE html><html></html>", "HTML page"),
    ],
)
def test_what_was_not_downloaded(tmp_path, capsys, name, content, message):
    folder_of(tmp_path / "vae", "vq_f8")
    if name.endswith(".bin"):
        (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "vae" / name).write_text(content)
    with refused(capsys, f"{name}.*{message}"):
        to_run("first_stage_vq_f8:tiny", tmp_path / "vae", tmp_path / "run")


def test_linear_projections(text, tmp_path):
    """Written as they came, with the setting that the library needs for them; the original's have 1x1 kernels."""
    file = text / "unet" / "diffusion_pytorch_model.safetensors"
    flat = {
        key: array.reshape(array.shape[:2]).copy() if re.search(r"proj_(in|out)\.weight", key) else array.copy()
        for key, array in read_safetensors(file)[0].items()
    }
    file.unlink()
    write_safetensors(file, given(flat), {})
    path = text / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_linear_projection": True}))
    to_run("text2img_ldm8:tiny", text, tmp_path / "run")
    from_run(tmp_path / "run", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "unet" / "config.json").read_text())["use_linear_projection"] is True
    after = read_safetensors(tmp_path / "back" / "unet" / "diffusion_pytorch_model.safetensors")[0]
    assert {k: a.shape for k, a in after.items()} == {k: a.shape for k, a in flat.items()}
    from_run(tmp_path / "run", tmp_path / "model.safetensors")
    theirs, ours = read_safetensors(tmp_path / "model.safetensors")[0], checkpoint("text2img_ldm8:tiny", ema=False)
    assert {k: theirs[k].shape for k in ours} == {k: a.shape for k, a in ours.items()}


def test_super_resolution_that_the_pipeline_would_draw_wrongly():
    found = parts("imagenet_superres_ldm4:tiny")
    assert diffusers.check_pipeline(found, "superres") == []
    found[1].config["scaling_factor"] = 0.5
    with pytest.raises(UsageError, match=r"ignores the latent scale; here it is 0\.5.*--to model\.safetensors"):
        diffusers.check_pipeline(found, "superres")
    found[1].config.update(scaling_factor=1.0, latent_channels=4)
    with pytest.raises(UsageError, match=r"must have 3.*here it has 4.*--to model\.safetensors"):
        diffusers.check_pipeline(found, "superres")


def test_text_models_of_other_factors_are_told_how_to_be_drawn():
    found = parts("text2img_ldm8:tiny")
    assert diffusers.check_pipeline(found, "text") == []
    found[1].config["block_out_channels"] = [32, 64, 128]
    assert "f = 4: give it height and width times 8/4" in diffusers.check_pipeline(found, "text")[0]


@pytest.mark.parametrize(
    "name,message",
    [
        ("lsun_churches_ldm8", "cannot express unet.resblock_updown"),
        ("imagenet_ldm4", "no pipeline for the condition 'class'"),
    ],
)
def test_what_diffusers_cannot_hold(name, message):
    with pytest.raises(ValueError, match=message):
        parts(f"{name}:tiny")


def test_latent_scale_of_a_folder():
    assert diffusers.scale_of({"_class_name": "AutoencoderKL"}) == 0.18215
    assert diffusers.scale_of({"_class_name": "VQModel", "scaling_factor": 0.18215}) is None
    assert diffusers.scale_of({"_class_name": "VQModel", "scaling_factor": 1.0}) == 1.0


def test_full_size_names_have_no_two_alike():
    """Two of the original's keys that became one would lose a tensor."""
    leaves = tree.flatten(template("first_stage_kl_f8"))
    keys = compvis.original_keys(template("first_stage_kl_f8"))
    shapes = {key: names.torch_shape(path, leaves[path].shape) for path, key in keys.items()}
    ours = diffusers.autoencoder(recipe("first_stage_kl_f8").first_stage, shapes, "", 1.0)
    theirs = [name for group in ours.keys.values() for name in group]
    assert len(theirs) == len(set(theirs)) == 248


def test_schedules_from_pure_noise():
    flow, zero = (recipe(name).unlock().diffusion for name in ("quickstart_ldm:flow", "quickstart_ldm"))
    with pytest.raises(UsageError, match="kind='flow'"):
        diffusers.scheduler_config(flow)
    assert "rescale_betas_zero_snr" not in diffusers.scheduler_config(zero)
    zero.zero_terminal_snr = True
    assert diffusers.scheduler_config(zero)["rescale_betas_zero_snr"] is True


def test_a_pipeline_from_pure_noise_begins_at_the_last_step(tmp_path):
    """With diffusers' default spacing, "leading", it would begin at a step that has signal (Lin et al. 2023)."""
    diffusion = recipe("quickstart_ldm").unlock().diffusion
    assert "timestep_spacing" not in diffusers.scheduler_config(diffusion)
    diffusion.update(prediction="v", zero_terminal_snr=True)
    diffusers.write_pipeline(tmp_path, [], "none", diffusion)
    written = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert written["timestep_spacing"] == "trailing" and written["set_alpha_to_one"] is True
    theirs = np.round(np.arange(1000, 0, -1000 / 20)).astype(int) - 1  # DDIMScheduler.set_timesteps, "trailing"
    schedule = make_schedule(prediction="v", zero_terminal_snr=True)
    timetable = make_timetable(schedule, 20, "trailing")
    assert timetable.t.tolist() == theirs.tolist() and timetable.alpha_bar_prev[-1] == 1
    settings.check_scheduler(tmp_path / "scheduler_config.json", written, diffusers.scheduler_config(diffusion))
