"""A KL first stage on the built-in shapes, 32 px -> 16x16x3: minutes on a laptop, no download.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage

L1 + KL + PatchGAN without LPIPS, whose weights would have to be fetched first.
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = sections.autoencoder(laptop.quickstart_first_stage(), image_size=32)
    config.steps = 1100
    config.batch_size = 8
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=50)
    config.loss.update(perceptual_weight=0.0, disc_start=850, disc_layers=2, disc_ndf=16, disc_weight=0.1)
    config.every.update(evaluate=550, picture=550, checkpoint=550)
    config.data.update(simple_scenes=True, validation_images=128)
    return sections.finish(config, variant)
