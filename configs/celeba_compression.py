"""CelebA-HQ 256, unconditional LDM-1, 2, 4, 8, 16 and 32: the compression study of table 14 (figure 7).

Variants f1 (pixels), f2, f4 (default), f8, f16, f32. Recomputed UNets: 270.5, 264.5, 274.1, 257.7, 257.8 and
257.9M parameters; the table prints 260M for f16, which its row does not give.
First stages: f1 none, f2 and f32 first_stage_table8.py:vq_f2 and :vq_f32_c32, the others first_stage_vq_f*.py.

    python train.py --config=configs/celeba_compression.py:f8 --workdir=runs/celeba_compression_f8 \\
        --config.first_stage.checkpoint=runs/vq_f8 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/celeba_compression_f8 --num=16 --steps=100
    python evaluate.py runs/celeba_compression_f8 --num=5000 --steps=100 --spacing=original      # as in figure 7
"""

from ldm_jax.recipes import sections

# z, first stage, UNet width and levels, attention (downsampling factors), batch, learning rate
ROWS = {
    "f1": (sections.pixels(), 192, (1, 1, 2, 2, 4, 4), (8, 16, 32), 9, 9e-5),
    "f2": (sections.vq_f2(), 192, (1, 2, 2, 4, 4), (4, 8, 16), 11, 1.1e-4),
    "f4": (sections.vq_f4(), 224, (1, 2, 3, 4), (2, 4, 8), 48, 9.6e-5),
    "f8": (sections.vq_f8(), 256, (1, 2, 4), (1, 2, 4), 96, 9.6e-5),
    "f16": (sections.vq_f16(), 256, (1, 2, 4), (1, 2, 4), 128, 1.3e-4),
    "f32": (sections.vq_f32(channels=32), 256, (1, 2, 4), (1, 2, 4), 128, 1.3e-4),
}
VARIANTS = tuple(ROWS)


def get_config(variant: str = "f4"):
    name, variant = sections.split_variant(variant, VARIANTS)
    first_stage, width, levels, attention, batch_size, learning_rate = ROWS[name]
    unet = dict(model_channels=width, channel_mult=levels, attention_downsamples=attention, num_head_channels=32)
    config = sections.ldm(first_stage, unet)
    config.steps = 500_000
    config.batch_size = batch_size
    config.optim.learning_rate = learning_rate
    config.latent_scale = 1.0
    config.data.update(source="tfds", name="celeb_a_hq/256", split="train[:25000]")
    config.data.update(validation_split="train[25000:]", interpolation="bilinear")
    return sections.finish(config, variant)
