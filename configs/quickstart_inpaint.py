"""Holes of shapes filled: minutes on a laptop.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_inpaint.py --workdir=runs/quickstart/inpaint \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/inpaint --image=picture.png --mask=hole.png --num=4 --steps=100 --eta=1
    python scripts/check_quickstart.py runs/quickstart/inpaint
"""

from ldm_jax.conditions import inpaint
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.quickstart(inpaint.section())
    config.steps = 2400
    config.every.update(evaluate=600, picture=600, checkpoint=600)
    return sections.finish(config, variant)
