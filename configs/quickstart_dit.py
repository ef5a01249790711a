"""A diffusion transformer in place of the UNet of quickstart_class: shapes of a class, minutes on a laptop.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_dit.py --workdir=runs/quickstart/dit \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/dit --label 9 --num=16 --steps=100 --eta=1 --guidance=2
    python scripts/check_quickstart.py runs/quickstart/dit

8 blocks of width 192 (5.5M parameters) over 64 tokens, the 2x2 patches of latents of 16x16x3. The class comes with the
time, by adaLN-Zero (Peebles and Xie 2023, arXiv 2212.09748).
"""

from ldm_jax.conditions import class_label
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = laptop.quickstart(class_label.section(64, dim=192, drop_prob=0.1, embedding_std=0.02))
    sections.transformer(config, width=192, depth=8, num_heads=6)
    config.steps = 8000
    config.optim.learning_rate = 5e-4
    config.every.update(evaluate=2000, picture=2000, checkpoint=1000)
    return sections.finish(config, variant)
