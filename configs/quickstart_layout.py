"""Shapes where boxes say: minutes on a laptop.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_layout.py --workdir=runs/quickstart/layout \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/layout --layout=boxes.json --num=16 --steps=100 --eta=1 --guidance=2
    python scripts/check_quickstart.py runs/quickstart/layout

boxes.json, for example: [{"box": [0.1, 0.2, 0.7, 0.8], "class": 9}]
"""

from configs import common, conditioners, small


def get_config(variant: str = ""):
    conditioner = conditioners.layout(64, dim=64, depth=2, drop_prob=0.1)
    # Three objects of a class and two corners, on a grid of 16 x 16.
    conditioner.update(max_objects=3, min_objects=1, max_length=9, vocab_size=256, flags=(), crop_tokens=False)
    config = small.quickstart(conditioner)
    config.steps = 3200
    config.every.update(evaluate=800, picture=800, checkpoint=800)
    return common.finish(config, variant)
