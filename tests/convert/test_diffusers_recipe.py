"""Folders of diffusers that choose their recipe themselves."""

import json

import numpy as np
import pytest

from ldm_jax import build, recipes
from ldm_jax import checkpoint as checkpoints
from ldm_jax.cli import convert
from ldm_jax.convert import diffusers
from ldm_jax.convert.diffusers import scheduler_config
from ldm_jax.training import setup
from tests.convert.conversion_tools import from_run, recipe, refused
from tests.convert.test_diffusers import GOLDEN, folder_of, parts

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
        (SD_VAE | {"block_out_channels": [64, 128], "down_block_types": ["DownEncoderBlock2D"] * 2},
         "first_stage_sd_vae", ["first_stage.ch=64", "first_stage.ch_mult=(1,2)"]),
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


def test_a_lone_autoencoder_of_another_shape_there_and_back(tmp_path, capsys):
    """No recipe is named; 3 levels, 4 channels, its own scaling factor."""
    folder_of(tmp_path / "vae", "text/vqvae")
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 0.25}))
    convert.main(["--from", str(tmp_path / "vae"), "--to", str(tmp_path / "run"), "--config.loss.disc_ndf=8"])
    told = capsys.readouterr().out
    assert "recipe first_stage_sd_vae" in told and "--config.first_stage.ch=32" in told
    assert f"--config.first_stage.checkpoint={tmp_path / 'run'} --config.latent_scale=0.25" in told
    assert checkpoints.load_config(tmp_path / "run")["latent_scale"] == 0.25
    from_run(tmp_path / "run", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["scaling_factor"] == 0.25
    state = diffusers.read_safetensors(tmp_path / "back" / "diffusion_pytorch_model.safetensors")[0]
    assert {key: list(array.shape) for key, array in state.items()} == GOLDEN["text/vqvae"]["keys"]
    ldm = recipes.load("text2img_ldm8:tiny", [f"--config.first_stage.checkpoint={tmp_path / 'run'}"]).unlock()
    ldm.first_stage.resolution = 256
    found = setup.frozen(ldm, tmp_path / "none")["first_stage"]["params"]["encoder"]["conv_in"]["kernel"]
    assert np.array_equal(np.transpose(found, (3, 2, 0, 1)), state["encoder.conv_in.weight"])


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
