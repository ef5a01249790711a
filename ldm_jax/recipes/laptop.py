"""Sections of the recipes that a laptop can train: the built-in shapes and the emoji."""

from ml_collections import ConfigDict

from ldm_jax.conditions import class_label, text
from ldm_jax.recipes import sections


def _ldm(
    first_stage: dict, conditioner: dict | None, image_size: int, channel_mult: tuple[int, ...], num_res_blocks: int
) -> ConfigDict:
    unet = dict(
        model_channels=64,
        num_res_blocks=num_res_blocks,
        channel_mult=channel_mult,
        attention_downsamples=(2, 4),
        num_head_channels=32,
    )
    config = sections.ldm(first_stage, unet, conditioner, image_size=image_size)
    config.batch_size = 16
    config.optim.update(schedule="cosine", clip_norm=1.0)
    config.diffusion.prediction = "v"  # small nets: an error of eps at t near 999 is an error of colour, of v it is not
    config.sample.eta = 1.0  # its noise lets a net that is trained briefly correct its errors
    config.data.validation_images = 128
    return config


def quickstart(conditioner: dict | None = None, first_stage: dict | None = None) -> ConfigDict:
    """A UNet of 64, 128, 128 channels on latents of the built-in shapes, with a condition."""
    config = _ldm(first_stage or quickstart_first_stage(), conditioner, 32, channel_mult=(1, 2, 2), num_res_blocks=1)
    config.optim.update(learning_rate=1e-3, warmup_steps=100)
    config.ema.decay = 0.998
    config.data.simple_scenes = True
    return config


def quickstart_first_stage() -> dict:
    """32 px -> 16x16x3."""
    return sections.small_first_stage(
        "quickstart_first_stage", "kl", 2, ch=32, z_channels=3, resolution=32, num_res_blocks=1
    )


def quickstart_superres_first_stage() -> dict:
    """32 px -> 8x8x16."""
    return sections.small_first_stage(
        "quickstart_superres_first_stage", "kl", 4, ch=32, z_channels=16, resolution=32, num_res_blocks=1
    )


def emoji_first_stage() -> dict:
    """64 px -> 16x16x4."""
    return sections.small_first_stage(
        "emoji_first_stage", "kl", 4, ch=32, z_channels=4, resolution=64, num_res_blocks=1
    )


def emoji_f8_first_stage(image_size: int = 64) -> dict:
    """64 px -> 8x8x16 or 128 px -> 16x16x8, from patches of 4x4 pixels: nothing is computed at the full size."""
    recipe, z_channels = {64: ("emoji_f8_first_stage", 16), 128: ("emoji_f8_first_stage:128", 8)}[image_size]
    return sections.small_first_stage(
        recipe, "kl", 2, ch=64, z_channels=z_channels, resolution=image_size, num_res_blocks=1, patch=4
    )


def emoji(conditioner: dict | None = None, num_res_blocks: int = 2) -> ConfigDict:
    """A UNet of 64, 128, 256 channels on the latents of 3,391 rendered emoji."""
    config = _ldm(emoji_first_stage(), conditioner, 64, channel_mult=(1, 2, 4), num_res_blocks=num_res_blocks)
    config.steps = 8_000
    config.optim.update(learning_rate=3e-4, warmup_steps=200)
    config.ema.decay = 0.999
    config.every.update(evaluate=2000, picture=2000, checkpoint=1000)
    config.sample.steps = 100
    config.data.update(source="folder", path="datasets/emoji", flip=True)
    return config


EMOJI_SIZES = ("64", "128")  # variants of the recipes for emoji by name: pixels of a side


def emoji_size(variant: str) -> tuple[int, str]:
    """ "64" or "" -> (64, ""), "tiny" -> (64, "tiny"), "128_tiny" -> (128, "tiny"). Raises ConfigError for others."""
    if variant in ("", "tiny"):
        return 64, variant
    size, variant = sections.split_variant(variant, EMOJI_SIZES)
    return int(size), variant


def emoji_f8(image_size: int = 64) -> ConfigDict:
    """Emoji from a caption: a UNet of 64 and 128 channels on the latents of `emoji_f8_first_stage`, the caption in its
    time embedding."""
    unet = dict(num_res_blocks=2, attention_downsamples=(1, 2), context="pooled")
    conditioner = text.section(dim=192, depth=1, tokenizer="captions")
    conditioner.update(vocab_size=2048, max_length=16, null_tokens=(2, 3), use_mask=True, embedding_std=1.0)
    config = _two_levels(emoji_f8_first_stage(image_size), conditioner, image_size, unet)
    config.batch_size = 32
    config.optim.warmup_steps = 200
    config.ema.decay = 0.999
    config.data.update(source="folder", path=f"datasets/emoji{image_size}")
    return config


def demo_first_stage() -> dict:
    """32 px -> 8x8x4, from patches of 4x4 pixels: nothing is computed above 8x8."""
    return sections.small_first_stage(
        "demo_first_stage", "kl", 1, ch=64, z_channels=4, resolution=32, num_res_blocks=1, patch=4
    )


def demo() -> ConfigDict:
    """Classes of shapes: a UNet of 64 and 128 channels on latents of 8x8x4, the class in its time embedding."""
    unet = dict(num_res_blocks=1, attention_downsamples=(2,), context="embedding")
    config = _two_levels(demo_first_stage(), class_label.section(64, dim=64, drop_prob=0.1), 32, unet)
    config.data.simple_scenes = True
    return config


def _two_levels(first_stage: dict, conditioner: dict, image_size: int, unet: dict) -> ConfigDict:
    """A UNet of 64 and 128 channels without transformers, the condition in its time embedding; the cosine schedule."""
    unet = unet | dict(
        model_channels=64,
        channel_mult=(1, 2),
        num_head_channels=32,
        use_spatial_transformer=False,
        use_scale_shift_norm=True,
    )
    config = sections.ldm(first_stage, unet, conditioner, image_size=image_size)
    config.batch_size = 16
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0, b2=0.99)
    config.ema.decay = 0.998
    config.sample.eta = 1.0
    config.diffusion.update(schedule="cosine", prediction="v")
    config.data.validation_images = 128
    return config
