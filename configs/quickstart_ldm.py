"""An unconditional LDM on the built-in shapes in the latents of quickstart_first_stage: minutes on a laptop.

    python train.py --config=configs/quickstart_ldm.py --workdir=runs/quickstart/ldm \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/ldm --num=16 --steps=100 --eta=1
"""

from configs import common


def get_config(variant: str = ""):
    config = common.ldm(
        common.small_first_stage(
            "quickstart_first_stage", "kl", 2, ch=32, z_channels=3, resolution=32, num_res_blocks=1
        ),
        dict(
            model_channels=64,
            num_res_blocks=1,
            channel_mult=(1, 2, 2),
            attention_downsamples=(2, 4),
            num_head_channels=32,
        ),
        image_size=32,
    )
    config.steps = 1600
    config.batch_size = 16
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0)
    config.diffusion.prediction = "v"  # small nets: an error of eps at t near 999 is an error of colour, of v it is not
    config.ema.decay = 0.998
    config.every.update(evaluate=800, picture=800, checkpoint=800)
    config.sample.update(steps=50, eta=1.0)  # its noise lets a net that is trained briefly correct its errors
    config.data.update(simple_scenes=True, validation_images=128)
    return common.finish(config, variant)
