"""An unconditional LDM on 3,391 rendered emoji at 64 px, in the 16x16x4 latents of emoji_first_stage.

    python train.py --config=configs/emoji_ldm.py --workdir=runs/emoji/ldm \\
        --config.first_stage.checkpoint=runs/emoji/first_stage
    python sample.py --workdir=runs/emoji/ldm --num=64 --steps=200 --eta=1
"""

from configs import common


def get_config(variant: str = ""):
    config = common.ldm(
        common.small_first_stage("emoji_first_stage", "kl", 4, ch=32, z_channels=4, resolution=64, num_res_blocks=1),
        dict(
            model_channels=64,
            num_res_blocks=2,
            channel_mult=(1, 2, 4),
            attention_downsamples=(2, 4),
            num_head_channels=32,
        ),
        image_size=64,
    )
    config.steps = 8_000
    config.batch_size = 16
    config.optim.update(learning_rate=3e-4, schedule="cosine", warmup_steps=200, clip_norm=1.0)
    config.diffusion.prediction = "v"  # small nets: an error of eps at t near 999 is an error of colour, of v it is not
    config.ema.decay = 0.999
    config.every.update(evaluate=2000, picture=2000, checkpoint=1000)
    config.sample.update(steps=100, eta=1.0)  # its noise lets a net that is trained briefly correct its errors
    config.data.update(source="folder", path="datasets/emoji", flip=True, validation_images=128)
    return common.finish(config, variant)
