"""The first stage of quickstart_superres, 32 px -> 8x8x16: minutes on a laptop, no download.

    python train.py --config=configs/quickstart_superres_first_stage.py --workdir=runs/quickstart/superres_first_stage

L1 and KL alone: sharp edges of drawn shapes need no discriminator.
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = sections.autoencoder(laptop.quickstart_superres_first_stage(), image_size=32)
    config.steps = 3000
    config.batch_size = 8
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=50)
    config.loss.update(perceptual_weight=0.0, disc_start=1_000_000, disc_layers=2, disc_ndf=16)
    config.every.update(evaluate=1000, picture=1000, checkpoint=1000)
    config.data.update(simple_scenes=True, validation_images=128)
    return sections.finish(config, variant)
