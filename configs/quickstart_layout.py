"""Shapes where boxes say: minutes on a laptop.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_layout.py --workdir=runs/quickstart/layout \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/layout --layout=boxes.json --num=16 --steps=100 --eta=1 --guidance=4
    python scripts/check_quickstart.py runs/quickstart/layout

boxes.json, for example: [{"box": [0.1, 0.2, 0.7, 0.8], "class": 9}]
"""

from ldm_jax.conditions import layout
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    conditioner = layout.section(64, dim=64, depth=2, drop_prob=0.1)
    # Two objects of a class and two corners, on a grid of 8 x 8: with a finer one each corner is seen too seldom.
    conditioner.update(max_objects=2, min_objects=1, max_length=6, vocab_size=72, flags=(), crop_tokens=False)
    conditioner.update(embedding_std=1.0)
    config = laptop.quickstart(conditioner)
    config.steps = 7000
    config.every.update(evaluate=1000, picture=1000, checkpoint=1000)
    return sections.finish(config, variant)
