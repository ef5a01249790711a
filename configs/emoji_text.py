"""Emoji by their names, in the 8x8x16 latents of emoji_f8_first_stage. The vocabulary is made from the names.

    python train.py --config=configs/emoji_text.py --workdir=runs/emoji/text \\
        --config.first_stage.checkpoint=runs/emoji/f8_first_stage
    python sample.py --workdir=runs/emoji/text --steps=50 --eta=1 --guidance=3 --prompt "red heart" --num=8
"""

from ldm_jax.conditions import text
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    conditioner = text.section(dim=128, depth=1, tokenizer="captions")
    conditioner.update(vocab_size=2048, max_length=16, null_tokens=(2, 3), use_mask=True, embedding_std=1.0)
    config = laptop.emoji_f8(conditioner)
    config.steps = 6_500
    config.every.update(evaluate=1000, picture=1000, checkpoint=250)
    return sections.finish(config, variant)
