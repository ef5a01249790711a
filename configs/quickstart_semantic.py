"""Shapes in the places of a segmentation map: minutes on a laptop.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_semantic.py --workdir=runs/quickstart/semantic \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/semantic --segmentation=map.png --num=16 --steps=100 --eta=1
    python scripts/check_quickstart.py runs/quickstart/semantic

A map has 0 for the background and 1 + the number of the kind, in the order of ldm_jax/data/shapes.py's KINDS.
"""

from ldm_jax.conditions import semantic
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    conditioner = semantic.section(9, channels=8, drop_prob=0.1)
    conditioner.update(n_stages=1)  # 32 px -> 16x16
    config = laptop.quickstart(conditioner)
    config.steps = 2400
    config.every.update(evaluate=600, picture=600, checkpoint=600)
    return sections.finish(config, variant)
