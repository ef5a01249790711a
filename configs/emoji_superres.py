"""Emoji of 16 px made 64 px, in the 16x16x4 latents of emoji_first_stage.

    python train.py --config=configs/emoji_superres.py --workdir=runs/emoji/superres \\
        --config.first_stage.checkpoint=runs/emoji/first_stage
    python sample.py --workdir=runs/emoji/superres --steps=200 --eta=1 --image=SMALL.png
"""

from configs import common, conditioners, small


def get_config(variant: str = ""):
    return common.finish(small.emoji(conditioners.low_res()), variant)
