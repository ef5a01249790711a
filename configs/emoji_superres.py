"""Emoji of 16 px made 64 px, in the 16x16x4 latents of emoji_first_stage.

    python train.py --config=configs/emoji_superres.py --workdir=runs/emoji/superres \\
        --config.first_stage.checkpoint=runs/emoji/first_stage
    python sample.py --workdir=runs/emoji/superres --steps=200 --eta=1 --image=SMALL.png
"""

from ldm_jax.conditions import superres
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.emoji(superres.section(), num_res_blocks=1)
    config.steps = 2000
    config.every.update(evaluate=500, picture=500, checkpoint=500)
    return sections.finish(config, variant)
