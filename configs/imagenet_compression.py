"""ImageNet 256, class-conditional LDM-1, 2, 4, 8, 16 and 32: the compression study of table 13 (figure 6).

Variants f1 (pixels), f2, f4 (default), f8, f16, f32. Recomputed UNets: 396.8, 390.9, 400.9, 395.0, 395.0 and
395.1M parameters; the table prints 391M for f4, which its row does not give. One head as wide as the features.
First stages: f1 none, f2 and f32 first_stage_table8.py:vq_f2 and :vq_f32_c32, the others first_stage_vq_f*.py.

    python train.py --config=configs/imagenet_compression.py:f8 --workdir=runs/imagenet_compression_f8 \\
        --config.first_stage.checkpoint=runs/vq_f8 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/imagenet_compression_f8 --num=16 --steps=100
    python evaluate.py runs/imagenet_compression_f8 --num=5000 --steps=100 --spacing=original \\
        --reference=VIRTUAL_imagenet256_labeled.npz      # as in figure 6; the file is ADM's
"""

from ldm_jax.conditions import class_label
from ldm_jax.recipes import sections

# z, first stage, UNet width and levels, attention (downsampling factors), batch, learning rate
ROWS = {
    "f1": (sections.pixels(), 192, (1, 1, 2, 2, 4, 4), (8, 16, 32), 7, 4.9e-5),
    "f2": (sections.vq_f2(), 192, (1, 2, 2, 4, 4), (4, 8, 16), 9, 6.3e-5),
    "f4": (sections.vq_f4(), 192, (1, 2, 3, 5), (2, 4, 8), 40, 8e-5),
    "f8": (sections.vq_f8(), 256, (1, 2, 4), (1, 2, 4), 64, 6.4e-5),
    "f16": (sections.vq_f16(), 256, (1, 2, 4), (1, 2, 4), 112, 4.5e-5),
    "f32": (sections.vq_f32(channels=32), 256, (1, 2, 4), (1, 2, 4), 112, 4.5e-5),
}
VARIANTS = tuple(ROWS)


def get_config(variant: str = "f4"):
    name, variant = sections.split_variant(variant, VARIANTS)
    first_stage, width, levels, attention, batch_size, learning_rate = ROWS[name]
    unet = dict(model_channels=width, channel_mult=levels, attention_downsamples=attention, num_heads=1)
    config = sections.ldm(first_stage, unet, class_label.section(1000, 512))
    config.steps = 2_000_000
    config.batch_size = batch_size
    config.optim.learning_rate = learning_rate
    config.latent_scale = 1.0
    sections.imagenet(config)
    return sections.finish(config, variant)
