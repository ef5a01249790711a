"""Holes of emoji filled, in the 16x16x4 latents of emoji_first_stage.

    python train.py --config=configs/emoji_inpaint.py --workdir=runs/emoji/inpaint \\
        --config.first_stage.checkpoint=runs/emoji/first_stage
    python sample.py --workdir=runs/emoji/inpaint --steps=200 --eta=1 --image=PICTURE.png --mask=HOLE.png
"""

from ldm_jax.conditions import inpaint
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.emoji(inpaint.section(), num_res_blocks=1)
    config.steps = 6000
    config.optim.learning_rate = 6e-4
    config.every.update(evaluate=1000, picture=1000, checkpoint=1000)
    return sections.finish(config, variant)
