"""The first stage of `make demo`: KL, 32 px -> 8x8x4 on the built-in shapes, a minute or two on a laptop.

    python train.py --config=configs/demo_first_stage.py --workdir=runs/demo/first_stage

L1 + KL alone. Its weight of the KL term is far above the paper's: latents that carry little besides what is drawn are
learned sooner (docs/speedrun.md).
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = sections.autoencoder(laptop.demo_first_stage(), image_size=32)
    config.steps = 1600
    config.batch_size = 16
    config.optim.update(learning_rate=2e-3, schedule="cosine", warmup_steps=50)
    config.loss.update(perceptual_weight=0.0, disc_weight=0.0, kl_weight=0.05)
    config.every.update(evaluate=1600, picture=1600, checkpoint=800)
    config.data.update(simple_scenes=True, validation_images=128)
    return sections.finish(config, variant)
