"""Shapes of 8 px made 32 px: minutes on a laptop.

    python train.py --config=configs/quickstart_superres_first_stage.py --workdir=runs/quickstart/superres_first_stage
    python train.py --config=configs/quickstart_superres.py --workdir=runs/quickstart/superres \\
        --config.first_stage.checkpoint=runs/quickstart/superres_first_stage
    python sample.py --workdir=runs/quickstart/superres --image=small.png --num=4 --steps=100 --eta=1
    python scripts/check_quickstart.py runs/quickstart/superres
"""

from ldm_jax.conditions import superres
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.quickstart(superres.section(), laptop.quickstart_superres_first_stage())
    config.steps = 4000
    config.every.update(evaluate=1000, picture=1000, checkpoint=1000)
    return sections.finish(config, variant)
