"""Options of a recipe that a folder of diffusers tells by itself: an autoencoder alone, or a whole pipeline.

Only config.json files are read. Whether the model is one that can be read is found out when it is (diffusers.py).
"""

from pathlib import Path
from typing import Any

from ldm_jax.convert import diffusers_settings as settings
from ldm_jax.convert.diffusers import PREDICTIONS, SCHEDULES, channels_of, scale_of
from ldm_jax.errors import UsageError

# By class: recipes of the same kind. Of those with the same ch_mult, the one that needs the fewest changes is taken, of
# equals the first.
RECIPES = {
    "AutoencoderKL": ("first_stage_sd_vae", "first_stage_kl_f4", "first_stage_kl_f16", "first_stage_kl_f32"),
    "VQModel": (
        "first_stage_vq_f4", "first_stage_vq_f4_noattn", "first_stage_vq_f8", "first_stage_vq_f8_n256",
        "first_stage_vq_f16",
    ),
    "LDMPipeline": ("celeba_ldm4",),
    "LDMSuperResolutionPipeline": ("imagenet_superres_ldm4",),
    "LDMTextToImagePipeline": ("text2img_ldm8", "text2img_ldm4"),
}  # fmt: skip
_RESOLUTION = 256  # of all these recipes: attention of a first stage is named by the size of its feature map
_KINDS = {"AutoencoderKL": "kl", "VQModel": "vq"}


def options_of(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """(class of the whole, {option of a recipe: its value}); None if the folder is not one that tells.

    Raises UsageError for settings that no option expresses.
    """
    index, config = folder / "model_index.json", folder / "config.json"
    if index.is_file():
        settings.check_index(index)
        return settings.load(index)["_class_name"], _pipeline(folder)
    if config.is_file():
        kind = settings.load(config).get("_class_name")
        if kind in _KINDS:
            return kind, _first_stage(config)
    return None


def _read(file: Path, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """(class, settings with the class's defaults)."""
    found = settings.load(file)
    kind = found.get("_class_name", "LDMBertModel" if kinds == ("LDMBertModel",) else None)
    if kind not in kinds:
        raise UsageError(f"{file} has _class_name: {str(kind)[:60]!r}; what can be read is {' or '.join(kinds)}")
    return kind, settings.meaning(kind, found)


def _levels(file: Path, theirs: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    """(channels of the first level, factors of all levels)."""
    widths = theirs["block_out_channels"]
    if not isinstance(widths, list) or not widths or not all(type(w) is int and w > 0 for w in widths):
        raise UsageError(f"{file} has block_out_channels: {str(widths)[:60]}; a list of numbers is needed")
    if any(width % widths[0] for width in widths):
        raise UsageError(f"{file} has block_out_channels: {widths}; all must be multiples of the first")
    return widths[0], tuple(width // widths[0] for width in widths)


def _first_stage(file: Path) -> dict[str, Any]:
    kind, theirs = _read(file, tuple(_KINDS))
    ch, mult = _levels(file, theirs)
    attends = [i for i, block in enumerate(theirs["down_block_types"]) if block == "AttnDownEncoderBlock2D"]
    section = dict(
        ch=ch,
        ch_mult=mult,
        num_res_blocks=theirs["layers_per_block"],
        attn_resolutions=tuple(_RESOLUTION // 2**i for i in attends),
        attn_type="vanilla" if theirs["mid_block_add_attention"] else "none",
        in_channels=theirs["in_channels"],
        out_channels=theirs["out_channels"],
        z_channels=theirs["latent_channels"],
        embed_dim=theirs["latent_channels"],
        norm_groups=theirs["norm_num_groups"],
    )
    if kind == "AutoencoderKL":
        section |= {name: theirs[name] for name in ("use_quant_conv", "use_post_quant_conv")}
    if kind == "VQModel":
        section |= dict(embed_dim=theirs["vq_embed_dim"], n_embed=theirs["num_vq_embeddings"])
    out = {f"first_stage.{name}": value for name, value in section.items()} | {"data.channels": theirs["in_channels"]}
    found = settings.load(file)
    if (channels := channels_of(file, found)) is not None:
        shift, scale = channels
        return out | dict(latent_scale_kind="channels", latent_channel_shift=shift, latent_channel_scale=scale)
    scale = scale_of(found)
    return out if scale is None else out | {"latent_scale": scale}


def _pipeline(folder: Path) -> dict[str, Any]:
    first_stage = next((folder / name / "config.json" for name in ("vqvae", "vae") if (folder / name).is_dir()), None)
    if first_stage is None:
        raise UsageError(f"{folder} has neither vqvae/ nor vae/")
    out = _first_stage(first_stage) | _unet(folder / "unet" / "config.json")
    size = settings.load(folder / "unet" / "config.json").get("sample_size")
    if type(size) is int:
        out["data.image_size"] = size * 2 ** (len(out["first_stage.ch_mult"]) - 1)
    if (folder / "bert").is_dir():
        out |= _bert(folder / "bert" / "config.json")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return out | _diffusion(scheduler) if scheduler.is_file() else out


def _unet(file: Path) -> dict[str, Any]:
    kind, theirs = _read(file, ("UNet2DModel", "UNet2DConditionModel"))
    channels, mult = _levels(file, theirs)
    heads = theirs["attention_head_dim"]
    section: dict[str, Any] = dict(
        model_channels=channels,
        channel_mult=mult,
        num_res_blocks=theirs["layers_per_block"],
        attention_downsamples=tuple(2**i for i, block in enumerate(theirs["down_block_types"]) if "Attn" in block),
        out_channels=theirs["out_channels"],
        norm_groups=theirs["norm_num_groups"],
    )
    if kind == "UNet2DModel":
        section |= dict(num_heads=-1, num_head_channels=heads)
    elif isinstance(heads, list):
        section |= dict(num_heads=-1, num_head_channels=channels // heads[0])
    else:
        section |= dict(num_heads=heads, num_head_channels=-1)
    out = {f"unet.{name}": value for name, value in section.items()}
    if kind == "UNet2DConditionModel":
        out["unet.transformer_depth"] = theirs["transformer_layers_per_block"]
        out["conditioner.dim"] = theirs["cross_attention_dim"]
    return out


def _bert(file: Path) -> dict[str, Any]:
    _, theirs = _read(file, ("LDMBertModel",))
    names = dict(dim="d_model", depth="encoder_layers", vocab_size="vocab_size", max_length="max_position_embeddings")
    return {f"conditioner.{ours}": theirs[name] for ours, name in names.items()}


def _diffusion(file: Path) -> dict[str, Any]:
    found = settings.load(file)
    theirs = settings.meaning(settings.scheduler_kind(file, found), found)
    names = {}
    for name, known in (("beta_schedule", SCHEDULES), ("prediction_type", PREDICTIONS)):
        back = {value: key for key, value in known.items()}
        if theirs[name] not in back:
            raise UsageError(f"{file} has {name}: {str(theirs[name])[:60]!r}; what can be read is {', '.join(back)}")
        names[name] = back[theirs[name]]
    out = dict(
        timesteps=theirs["num_train_timesteps"],
        schedule=names["beta_schedule"],
        prediction=names["prediction_type"],
        zero_terminal_snr=theirs["rescale_betas_zero_snr"],
    )
    if names["beta_schedule"] != "cosine":
        out |= dict(start=theirs["beta_start"], end=theirs["beta_end"])
    return {f"diffusion.{name}": value for name, value in out.items()}
