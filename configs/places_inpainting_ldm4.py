"""Places, inpainting LDM-4: 215.23M UNet on 64x64x3 latents of VQ-f4 without attention.

Paper: tables 6, 7 and 15 (360k steps of 128 on eight V100; never released). Source: table 15, whose learning
rate 1e-6 is taken as the base rate of one sample: 128 x 1e-6. Attention stands in the middle block alone.

    python train.py --config=configs/places_inpainting_ldm4.py --workdir=runs/places_inpainting_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4_noattn --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/places_inpainting_ldm4 --image=picture.png --mask=hole.png

The images: TFDS places365_small, or any folder (--config.data.source=folder --config.data.path=IMAGES).
"""

from configs import common, conditioners


def get_config(variant: str = ""):
    config = common.ldm(
        common.vq_f4_noattn(),
        dict(model_channels=128, channel_mult=(1, 4, 8), attention_downsamples=(), num_heads=1),
        conditioners.masked(),
    )
    config.steps = 360_000
    config.batch_size = 128
    config.optim.learning_rate = 1.28e-4
    config.latent_scale = 1.0
    config.data.update(source="tfds", name="places365_small", crop="random", resize="none", masks="train_256")
    return common.finish(config, variant)
