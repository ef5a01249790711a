"""Shapes of a class in the places of a segmentation map, both at once: minutes on a laptop.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_hybrid.py --workdir=runs/quickstart/hybrid \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/hybrid --label=9 --segmentation=map.png --num=16 --steps=100 --eta=1

The class reaches the UNet through cross-attention, the map through its input channels; every label that is asked for is
joined with every map. A part's options are config.conditioner.parts.class.dim and the like.
"""

from ldm_jax.conditions import class_label, hybrid, semantic
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    where = semantic.section(9, channels=8)
    where.update(n_stages=1)  # 32 px -> 16x16
    what = class_label.section(64, dim=64, drop_prob=0.1)
    config = laptop.quickstart(hybrid.section(what, where, drop_prob=0.1))
    config.steps = 4000
    config.every.update(evaluate=1000, picture=1000, checkpoint=1000)
    return sections.finish(config, variant)
