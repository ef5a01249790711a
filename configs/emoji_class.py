"""Emoji of a category, in the 16x16x4 latents of emoji_first_stage: the folder's labels in alphabetical order.

    python train.py --config=configs/emoji_class.py --workdir=runs/emoji/class \\
        --config.first_stage.checkpoint=runs/emoji/first_stage
    python sample.py --workdir=runs/emoji/class --steps=200 --eta=1 --guidance=3 --label 3 --num=8
"""

from ldm_jax.conditions import class_label
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.emoji(class_label.section(9, dim=128, drop_prob=0.1), num_res_blocks=1)
    config.steps = 3000
    config.every.update(evaluate=1000, picture=1000, checkpoint=1000)
    return sections.finish(config, variant)
