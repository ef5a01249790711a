"""An unconditional LDM on the built-in shapes in the latents of quickstart_first_stage: minutes on a laptop.

    python train.py --config=configs/quickstart_ldm.py --workdir=runs/quickstart/ldm \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/ldm --num=16
"""

from configs import common


def get_config(variant: str = ""):
    config = common.unconditional_ldm(
        common.small_first_stage(
            "quickstart_first_stage", "kl", 4, ch=32, z_channels=4, resolution=32, num_res_blocks=1
        ),
        dict(
            model_channels=64,
            num_res_blocks=1,
            channel_mult=(1, 2),
            attention_downsamples=(1, 2),
            num_head_channels=32,
        ),
        image_size=32,
    )
    config.steps = 1600
    config.batch_size = 32
    config.optim.update(learning_rate=5e-4, schedule="cosine", warmup_steps=100, clip_norm=1.0)
    config.ema.decay = 0.999
    config.every.update(evaluate=800, picture=800, checkpoint=800)
    config.data.validation_images = 128
    return common.finish(config, variant)
