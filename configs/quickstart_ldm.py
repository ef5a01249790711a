"""An unconditional LDM on the built-in shapes in the latents of quickstart_first_stage: minutes on a laptop.

    python train.py --config=configs/quickstart_ldm.py --workdir=runs/quickstart/ldm \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/ldm --num=16 --steps=100 --eta=1
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.quickstart()
    config.steps = 1600
    config.every.update(evaluate=800, picture=800, checkpoint=800)
    return sections.finish(config, variant)
