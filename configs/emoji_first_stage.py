"""A KL first stage on 3,391 rendered emoji, 64 px -> 16x16x4, with LPIPS (AlexNet) and PatchGAN.

python scripts/prepare_emoji.py --out datasets/emoji
python scripts/make_lpips_weights.py --net alex
python train.py --config=configs/emoji_first_stage.py --workdir=runs/emoji/first_stage
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = sections.autoencoder(laptop.emoji_first_stage(), image_size=64)
    config.steps = 3500
    config.batch_size = 8
    config.optim.update(learning_rate=5e-4, schedule="cosine", warmup_steps=100)
    config.loss.update(lpips_net="alex", disc_start=2000, disc_learns_from=1500)
    config.loss.update(disc_layers=2, disc_ndf=32, disc_weight=0.5)
    config.every.update(evaluate=1000, picture=500, checkpoint=500)
    config.data.update(source="folder", path="datasets/emoji", flip=True, validation_images=128)
    return sections.finish(config, variant)
