"""Shapes as a caption says: minutes on a laptop. The vocabulary is made from the training captions.

    python train.py --config=configs/quickstart_first_stage.py --workdir=runs/quickstart/first_stage
    python train.py --config=configs/quickstart_text.py --workdir=runs/quickstart/text \\
        --config.first_stage.checkpoint=runs/quickstart/first_stage
    python sample.py --workdir=runs/quickstart/text --num=16 --steps=100 --eta=1 --guidance=6 \\
        --prompt "a large red circle on a plain grey background"
    python scripts/check_quickstart.py runs/quickstart/text
"""

from ldm_jax.conditions import text
from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    conditioner = text.section(dim=64, depth=2, tokenizer="captions")
    conditioner.update(vocab_size=256, max_length=24, null_tokens=(2, 3), use_mask=True, embedding_std=1.0)
    config = laptop.quickstart(conditioner)
    config.steps = 6000
    config.every.update(evaluate=2000, picture=2000, checkpoint=1000)
    return sections.finish(config, variant)
