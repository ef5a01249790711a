"""Shapes of a class, colour and kind of the main shape: minutes on a laptop.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_class.py --workdir=runs/quickstart/class \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/class --label 9 --num=16 --steps=100 --eta=1 --guidance=2
    python scripts/check_quickstart.py runs/quickstart/class

The classes are ldm_jax/data/shapes.py's CLASS_NAMES; simple scenes have the 32 of SIMPLE_KINDS.
"""

from ldm_jax.conditions import class_label
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.quickstart(class_label.section(64, dim=64, drop_prob=0.1))
    config.steps = 8000
    config.every.update(evaluate=2000, picture=2000, checkpoint=1000)
    return sections.finish(config, variant)
