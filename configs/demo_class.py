"""The diffusion model of `make demo`: shapes of a class, minutes on a laptop.

    python train.py --config=configs/demo_first_stage.py --workdir=runs/demo/first_stage
    python train.py --config=configs/demo_class.py --workdir=runs/demo/class \\
        --config.first_stage.checkpoint=runs/demo/first_stage
    python sample.py --workdir=runs/demo/class --label 9 --num=16 --steps=50 --guidance=2
    python scripts/check_quickstart.py runs/demo/class

Classes are those of quickstart_class; the network is smaller and trains twice as fast (docs/speedrun.md).
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.demo()
    config.steps = 4600
    config.every.update(evaluate=0, picture=2300, checkpoint=500)
    return sections.finish(config, variant)
