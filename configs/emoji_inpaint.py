"""Holes of emoji filled, in the 16x16x4 latents of emoji_first_stage.

    python train.py --config=configs/emoji_inpaint.py --workdir=runs/emoji/inpaint \\
        --config.first_stage.checkpoint=runs/emoji/first_stage
    python sample.py --workdir=runs/emoji/inpaint --steps=200 --eta=1 --image=PICTURE.png --mask=HOLE.png
"""

from configs import common, conditioners, small


def get_config(variant: str = ""):
    return common.finish(small.emoji(conditioners.masked()), variant)
