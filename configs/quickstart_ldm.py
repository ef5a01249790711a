"""An unconditional LDM on the built-in shapes in the latents of quickstart_first_stage: minutes on a laptop.

    python train.py --config=configs/quickstart_ldm.py --workdir=runs/quickstart/ldm \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/ldm --num=16 --steps=100 --eta=1

quickstart_ldm:flow is the same by flow matching, t logit-normal (Esser et al. 2024, arXiv 2403.03206):

    python train.py --config=quickstart_ldm:flow --workdir=runs/quickstart/flow \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/flow --num=16 --steps=50 --sampler=heun
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.quickstart()
    config.steps = 1600
    config.every.update(evaluate=800, picture=800, checkpoint=800)
    if variant in ("flow", "flow_tiny"):
        config.diffusion.update(kind="flow", t_distribution="logit_normal")
        variant = variant.removeprefix("flow").removeprefix("_")
    return sections.finish(config, variant)
