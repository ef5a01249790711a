"""Emoji by their names, in the 8x8x16 latents of emoji_f8_first_stage. The text encoder is that of emoji_captions.

    python train.py --config=configs/emoji_text.py --workdir=runs/emoji/text \\
        --config.first_stage.checkpoint=runs/emoji/f8_first_stage --config.conditioner.checkpoint=runs/emoji/captions
    python sample.py --workdir=runs/emoji/text --steps=50 --eta=1 --guidance=1.5 --prompt "red heart" --num=8

Variants 64 (default), and 128: 128 px, latents of 16x16x8, in minutes of a GPU; it is the model pretrained/emoji_text.
"""

from ldm_jax.recipes import laptop, sections

VARIANTS = laptop.EMOJI_SIZES


def get_config(variant: str = ""):
    size, variant = laptop.emoji_size(variant)
    config = laptop.emoji_f8(size)
    config.conditioner.trainable = variant == "tiny"  # which needs no other run
    config.steps, config.batch_size = (8_000, 32) if size == 64 else (5_000, 128)
    config.every.update(evaluate=1000, picture=1000, checkpoint=250)
    return sections.finish(config, variant)
