"""Folders of diffusers that choose their recipe themselves."""

import json

import numpy as np
import pytest

from ldm_jax import build, config_file, recipes
from ldm_jax.cli import convert
from ldm_jax.convert import diffusers, tensors
from ldm_jax.convert.diffusers import scheduler_config
from ldm_jax.convert.tensors import given
from ldm_jax.errors import UsageError
from ldm_jax.training import setup
from tests.convert.conversion_tools import from_run, recipe, refused, shapes_of, template
from tests.convert.test_diffusers import GOLDEN, folder_of, parts

TEXT = "text2img_ldm8:tiny"
# As the library writes them (the numbers of stabilityai/sd-vae-ft-mse and of CompVis/ldm-celebahq-256).
SD_VAE = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", "act_fn": "silu",
          "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
          "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
          "sample_size": 256, "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
VQ_F4 = {"_class_name": "VQModel", "act_fn": "silu", "block_out_channels": [128, 256, 512],
         "down_block_types": ["DownEncoderBlock2D"] * 3, "in_channels": 3, "latent_channels": 3, "layers_per_block": 2,
         "norm_num_groups": 32, "num_vq_embeddings": 8192, "out_channels": 3, "sample_size": 256,
         "up_block_types": ["UpDecoderBlock2D"] * 3, "vq_embed_dim": None}  # fmt: skip
CELEBA = {"_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": 32,
          "block_out_channels": [224, 448, 672, 896], "center_input_sample": False,
          "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3], "downsample_padding": 1,
          "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 3, "layers_per_block": 2,
          "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 3, "sample_size": 64,
          "time_embedding_type": "positional", "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"]}  # fmt: skip


def written(path, **files):
    """A folder of JSON files; __ in a name is a folder."""
    for name, content in files.items():
        file = path / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "config,name,options",
    [
        (SD_VAE, "first_stage_sd_vae", []),
        (SD_VAE | {"latent_channels": 16, "scaling_factor": 0.3611}, "first_stage_sd_vae",
         ["first_stage.z_channels=16", "first_stage.embed_dim=16", "latent_scale=0.3611"]),
        (SD_VAE | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
                   "use_post_quant_conv": False, "latents_mean": None, "latents_std": None},
         "first_stage_sd_vae",
         ["first_stage.z_channels=16", "first_stage.embed_dim=16", "first_stage.use_quant_conv=False",
          "first_stage.use_post_quant_conv=False", "latent_scale_kind=channels", "latent_channel_shift=(0.0609,)",
          "latent_channel_scale=(1.5305,)"]),
        (SD_VAE | {"scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4.5], "latents_std": [1.0, 2.0, 4.0, 8.0]},
         "first_stage_sd_vae",
         ["latent_scale_kind=channels", "latent_channel_shift=(1.0,2.0,3.0,4.5)",
          "latent_channel_scale=(0.5,0.25,0.125,0.0625)"]),
        (SD_VAE | {"block_out_channels": [64, 128], "down_block_types": ["DownEncoderBlock2D"] * 2},
         "first_stage_sd_vae", ["first_stage.ch=64", "first_stage.ch_mult=(1,2)"]),
        (SD_VAE | {"norm_num_groups": 16}, "first_stage_sd_vae", ["first_stage.norm_groups=16"]),
        (VQ_F4, "first_stage_vq_f4", []),
        (VQ_F4 | {"mid_block_add_attention": False}, "first_stage_vq_f4_noattn", []),
        (VQ_F4 | {"num_vq_embeddings": 512, "latent_channels": 8, "vq_embed_dim": 4}, "first_stage_vq_f4",
         ["first_stage.z_channels=8", "first_stage.embed_dim=4", "first_stage.n_embed=512"]),
    ],
)  # fmt: skip
def test_autoencoders(tmp_path, config, name, options):
    found, overrides = convert.recipe_of(written(tmp_path, config=config))
    assert (found, overrides) == (name, [f"--config.{option}" for option in options])
    recipes.load(found, overrides)


def pipeline(path, kind, vae, unet, **more):
    return written(path, model_index={"_class_name": kind}, vqvae__config=vae, unet__config=unet, **more)


def test_celeba(tmp_path):
    scheduler = scheduler_config(recipe("celeba_ldm4").diffusion)
    where = pipeline(tmp_path, "LDMPipeline", VQ_F4, CELEBA, scheduler__scheduler_config=scheduler)
    assert convert.recipe_of(where) == ("celeba_ldm4", [])
    changed = scheduler | {"beta_end": 0.012, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    written(where, scheduler__scheduler_config=changed, unet__config=CELEBA | {"sample_size": 32})
    name, overrides = convert.recipe_of(where)
    expected = {
        "data.image_size=128",
        "diffusion.prediction=v",
        "diffusion.zero_terminal_snr=True",
        "diffusion.end=0.012",
    }
    assert name == "celeba_ldm4" and set(overrides) == {f"--config.{option}" for option in expected}
    assert build.schedule(recipes.load(name, overrides)).pure_noise


@pytest.mark.parametrize(
    "kind,name,best",
    [
        ("LDMTextToImagePipeline", "text2img_ldm8:tiny", "text2img_ldm8"),
        ("LDMSuperResolutionPipeline", "imagenet_superres_ldm4:tiny", "imagenet_superres_ldm4"),
    ],
)
def test_what_is_written_leads_back(tmp_path, kind, name, best):
    """The config.json files of a small model give its numbers as options of the full-size recipe."""
    files = {f"{c.folder}__config": {"_class_name": c.kind} | c.config for c in parts(name)}
    files["scheduler__scheduler_config"] = scheduler_config(recipe(name).diffusion)
    found, overrides = convert.recipe_of(written(tmp_path, model_index={"_class_name": kind}, **files))
    told, small = recipes.load(found, overrides), recipe(name)
    assert found == best and told.data.image_size == small.data.image_size
    for section, free in (("unet", {"remat"}), ("first_stage", {"resolution", "checkpoint", "n_embed"}),
                          ("diffusion", ()), ("conditioner", ())):  # fmt: skip
        ours, theirs = told[section].to_dict(), small[section].to_dict()
        assert {k: v for k, v in ours.items() if k not in free} == {k: v for k, v in theirs.items() if k not in free}


def test_another_number_of_groups_there_and_back(tmp_path, capsys):
    """The folder says it, of both networks; the original's files cannot."""
    for part in ("unet", "vqvae"):
        folder_of(tmp_path / "celeba" / part, f"celeba/{part}", norm_num_groups=8)
    written(tmp_path / "celeba", model_index={"_class_name": "LDMPipeline"})
    scheduler = scheduler_config(recipe("celeba_ldm4").diffusion)
    written(tmp_path / "celeba", scheduler__scheduler_config=scheduler)
    _, overrides = convert.recipe_of(tmp_path / "celeba")
    groups = [f"--config.{name}.norm_groups=8" for name in ("first_stage", "unet")]
    assert set(groups) <= set(overrides)
    with refused(capsys, r"another UNet2DModel.*\n.*norm_num_groups: 8 in the folder, 32 by the config"):
        convert.main(["--config=celeba_ldm4:tiny", "--from", str(tmp_path / "celeba"), "--to", str(tmp_path / "no")])
    convert.main(
        ["--config=celeba_ldm4:tiny", "--from", str(tmp_path / "celeba"), "--to", str(tmp_path / "run"), *groups]
    )
    from_run(tmp_path / "run", tmp_path / "back")
    for part in ("unet", "vqvae"):
        found, back = (tmp_path / root / part for root in ("celeba", "back"))
        assert json.loads((back / "config.json").read_text())["norm_num_groups"] == 8
        before, after = (diffusers._tensors(folder)[0] for folder in (found, back))
        assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)
    with refused(capsys, r"config\.first_stage\.norm_groups=8: .*--to FOLDER"):
        from_run(tmp_path / "run", tmp_path / "model.ckpt")


def test_a_lone_autoencoder_of_another_shape_there_and_back(tmp_path, capsys):
    """No recipe is named; 3 levels, 4 channels, its own scaling factor."""
    folder_of(tmp_path / "vae", "text/vqvae")
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 0.25}))
    convert.main(["--from", str(tmp_path / "vae"), "--to", str(tmp_path / "run"), "--config.loss.disc_ndf=8"])
    told = capsys.readouterr().out
    assert "recipe first_stage_sd_vae" in told and "--config.first_stage.ch=32" in told
    assert f"--config.first_stage.checkpoint={tmp_path / 'run'} --config.latent_scale=0.25" in told
    assert config_file.load(tmp_path / "run")["latent_scale"] == 0.25
    from_run(tmp_path / "run", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["scaling_factor"] == 0.25
    state = diffusers.read_safetensors(tmp_path / "back" / "diffusion_pytorch_model.safetensors")[0]
    assert {key: list(array.shape) for key, array in state.items()} == GOLDEN["text/vqvae"]["keys"]
    ldm = recipes.load("text2img_ldm8:tiny", [f"--config.first_stage.checkpoint={tmp_path / 'run'}"]).unlock()
    ldm.first_stage.resolution = 256
    found = setup.frozen(ldm, tmp_path / "none")["first_stage"]["params"]["encoder"]["conv_in"]["kernel"]
    assert np.array_equal(np.transpose(found, (3, 2, 0, 1)), state["encoder.conv_in.weight"])


MEAN, STD = [0.5, -1.0, 0.25, 2.0], [1.0, 2.0, 0.5, 4.0]


@pytest.mark.parametrize(
    "settings,options,by_options",
    [
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, ["(0.0609,)", "(1.5305,)"], {}),
        ({"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.5},
         ["(0.5,-1.0,0.25,2.0)", "(0.5,0.25,1.0,0.125)"], {"latents_std": [2.0, 4.0, 1.0, 8.0], "scaling_factor": 1.0}),
    ],
)  # fmt: skip
def test_an_autoencoder_that_shifts_its_latents_there_and_back(tmp_path, capsys, settings, options, by_options):
    """Without its 1x1 convolutions. What is written is what was read; by the options alone it means the same."""
    folder_of(tmp_path / "vae", "text/vqvae")
    file = tmp_path / "vae" / "config.json"
    without = {"use_quant_conv": False, "use_post_quant_conv": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings | without))
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = {k: a for k, a in diffusers.read_safetensors(weights)[0].items() if "quant_conv" not in k}
    diffusers.write_safetensors(weights, given(state), {})
    convert.main(["--from", str(tmp_path / "vae"), "--to", str(tmp_path / "run"), "--config.loss.disc_ndf=8"])
    shift, scale = (f"--config.latent_channel_{n}={v}" for n, v in zip(("shift", "scale"), options))
    told = capsys.readouterr().out
    assert f"{tmp_path / 'run'} --config.latent_scale_kind=channels '{shift}' '{scale}'" in told
    with refused(capsys, r"use_quant_conv=False: first stages of the original have this.*--to FOLDER"):
        from_run(tmp_path / "run", tmp_path / "model.ckpt")

    def written_again(folder):
        from_run(tmp_path / "run", folder)
        back = json.loads((folder / "config.json").read_text())
        return {name: back.get(name) for name in (*settings, *without)}

    assert written_again(tmp_path / "back") == settings | without
    again = diffusers.read_safetensors(tmp_path / "back" / "diffusion_pytorch_model.safetensors")[0]
    assert again.keys() == state.keys() and all(np.array_equal(again[k], state[k]) for k in state)
    (tmp_path / "run" / tensors.KEPT).unlink()
    assert written_again(tmp_path / "by_options") == settings | without | by_options


def test_settings_of_latents_without_a_meaning(tmp_path):
    for wrong in (
        {"latents_mean": MEAN},
        {"latents_mean": MEAN, "latents_std": STD[:3]},
        {"latents_mean": MEAN, "latents_std": [0, 1, 1, 1]},
        {"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.1},
        {"shift_factor": "0.1"},
    ):
        with pytest.raises(UsageError, match=r"config\.json has shift_factor.*4 numbers each"):
            convert.recipe_of(written(tmp_path, config=SD_VAE | wrong))


def test_a_pipeline_does_not_shift_its_latents(tmp_path):
    """diffusers' pipelines of latent diffusion ignore a shift, and there is one scale in a file."""
    for part in ("unet", "vqvae", "bert"):
        folder_of(tmp_path / part, f"text/{part}")
    file = tmp_path / "vqvae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shift_factor": 0.1}))
    config, state, frozen = shapes_of(TEXT)
    with pytest.raises(UsageError, match=r"pipelines of latent diffusion ignore.*--from its folder"):
        tensors.read(tmp_path, config, template(TEXT, ema=False), build.latent_shape(config)[0])
    for layout in ("compvis", "dit"):
        with pytest.raises(UsageError, match=r"='channels': a file .* give --config\.latent_scale_kind=scalar"):
            tensors.fill(tensors.Source({}, layout), config, state, frozen | {"latent_shift": None}, None)
    config = config.copy_and_resolve_references().unlock()
    config.latent_scale_kind = "channels"
    with pytest.raises(UsageError, match=r"have one latent scale.*--export"):
        convert._check_writable(config, tmp_path / "folder")


def test_what_cannot_be_told(tmp_path, capsys):
    for source, message in [
        ("CompVis/ldm-celebahq-256", r"hf download CompVis/ldm-celebahq-256 --local-dir ldm-celebahq-256"),
        (str(tmp_path / "none"), "none does not exist"),
        (str(written(tmp_path / "clip", config={"_class_name": "CLIP"})), "give its recipe: --config=NAME"),
        (str(written(tmp_path / "sd", model_index={"_class_name": "StableDiffusionPipeline"})), "StableDiffusion"),
        (str(written(tmp_path / "odd", config=SD_VAE | {"block_out_channels": [128, 200]})), "multiples of the first"),
    ]:
        with refused(capsys, message):
            convert.main(["--from", source, "--to", str(tmp_path / "run")])
    with refused(capsys, "hf download CompVis/ldm-celebahq-256"):
        convert.main(["--config=celeba_ldm4", "--from", "CompVis/ldm-celebahq-256", "--to", str(tmp_path / "run")])
