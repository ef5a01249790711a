"""A fast KL first stage on 3,391 rendered emoji, 64 px -> 8x8x16, from patches of 4x4 pixels, with LPIPS (AlexNet).

    python scripts/prepare_emoji.py --out datasets/emoji64 --size 64
    python scripts/make_lpips_weights.py --net alex
    python train.py --config=configs/emoji_f8_first_stage.py --workdir=runs/emoji/f8_first_stage

No discriminator. Its weight of the KL term is far above the paper's, as in demo_first_stage. Variants 64 (default), and
128: 128 px -> 16x16x8, in minutes of a GPU (`prepare_emoji.py --out datasets/emoji128 --size 128`).
"""

from ldm_jax.recipes import laptop, sections

VARIANTS = laptop.EMOJI_SIZES


def get_config(variant: str = ""):
    size, variant = laptop.emoji_size(variant)
    config = sections.autoencoder(laptop.emoji_f8_first_stage(size), image_size=size)
    config.steps, config.batch_size = (10_000, 16) if size == 64 else (5_000, 32)
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, b2=0.99)
    config.loss.update(lpips_net="alex", disc_weight=0.0, kl_weight=0.002)
    config.every.update(evaluate=2500, picture=2500, checkpoint=500)
    config.data.update(source="folder", path=f"datasets/emoji{size}", validation_images=128)
    return sections.finish(config, variant)
