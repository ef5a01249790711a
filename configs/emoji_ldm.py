"""An unconditional LDM on 3,391 rendered emoji at 64 px, in the 16x16x4 latents of emoji_first_stage.

    python train.py --config=configs/emoji_ldm.py --workdir=runs/emoji/ldm \\
        --config.first_stage.checkpoint=runs/emoji/first_stage
    python sample.py --workdir=runs/emoji/ldm --num=64 --steps=200 --eta=1
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    return sections.finish(laptop.emoji(), variant)
