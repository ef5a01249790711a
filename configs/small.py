"""Sections of the recipes that a laptop can train: the built-in shapes and the emoji."""

from ml_collections import ConfigDict

from configs import common


def quickstart(conditioner: dict | None = None, first_stage: dict | None = None, image_size: int = 32) -> ConfigDict:
    """A UNet of 64, 128, 128 channels on latents of 16x16 of the built-in shapes, told what the conditioner says."""
    config = common.ldm(
        first_stage or quickstart_first_stage(),
        dict(
            model_channels=64,
            num_res_blocks=1,
            channel_mult=(1, 2, 2),
            attention_downsamples=(2, 4),
            num_head_channels=32,
        ),
        conditioner,
        image_size=image_size,
    )
    config.batch_size = 16
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0)
    config.diffusion.prediction = "v"  # small nets: an error of eps at t near 999 is an error of colour, of v it is not
    config.ema.decay = 0.998
    config.sample.update(steps=50, eta=1.0)  # its noise lets a net that is trained briefly correct its errors
    config.data.update(simple_scenes=True, validation_images=128)
    return config


def quickstart_first_stage() -> dict:
    """32 px -> 16x16x3."""
    return common.small_first_stage(
        "quickstart_first_stage", "kl", 2, ch=32, z_channels=3, resolution=32, num_res_blocks=1
    )


def quickstart_superres_first_stage() -> dict:
    """32 px -> 8x8x16."""
    return common.small_first_stage(
        "quickstart_superres_first_stage", "kl", 4, ch=32, z_channels=16, resolution=32, num_res_blocks=1
    )


def emoji_first_stage() -> dict:
    """64 px -> 16x16x4."""
    return common.small_first_stage("emoji_first_stage", "kl", 4, ch=32, z_channels=4, resolution=64, num_res_blocks=1)


def emoji(conditioner: dict | None = None) -> ConfigDict:
    """A UNet of 64, 128, 256 channels on the latents of 3,391 rendered emoji."""
    config = common.ldm(
        emoji_first_stage(),
        dict(
            model_channels=64,
            num_res_blocks=2,
            channel_mult=(1, 2, 4),
            attention_downsamples=(2, 4),
            num_head_channels=32,
        ),
        conditioner,
        image_size=64,
    )
    config.steps = 8_000
    config.batch_size = 16
    config.optim.update(learning_rate=3e-4, schedule="cosine", warmup_steps=200, clip_norm=1.0)
    config.diffusion.prediction = "v"  # as in the quickstarts
    config.ema.decay = 0.999
    config.every.update(evaluate=2000, picture=2000, checkpoint=1000)
    config.sample.update(steps=100, eta=1.0)
    config.data.update(source="folder", path="datasets/emoji", flip=True, validation_images=128)
    return config
