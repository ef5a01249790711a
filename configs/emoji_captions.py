"""The text encoder of emoji_text: it learns the mean latent of each name, in minutes, before there is a UNet.

    python train.py --config=configs/emoji_captions.py --workdir=runs/emoji/captions \\
        --config.first_stage.checkpoint=runs/emoji/f8_first_stage

A diffusion model's gradient teaches a text encoder slowly: most of it is noise. Here the loss is a regression, and a
step has no UNet. The vocabulary is made from the names. Samples of this run are the mean pictures that it has learnt.

Variants 64 (default), and 128: for emoji_text:128, in a minute of a GPU.
"""

from ldm_jax.recipes import laptop, sections

VARIANTS = laptop.EMOJI_SIZES


def get_config(variant: str = ""):
    size, variant = laptop.emoji_size(variant)
    config = laptop.emoji_f8(size)
    config.network.kind = "mean"
    config.diffusion.prediction = "x0"
    config.steps = 4000 if size == 64 else 3000
    config.batch_size = 128
    config.optim.update(learning_rate=2e-3, warmup_steps=200)
    config.sample.update(steps=2, eta=0.0)
    config.every.update(evaluate=500, picture=500, checkpoint=250)
    return sections.finish(config, variant)
