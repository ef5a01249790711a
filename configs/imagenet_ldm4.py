"""ImageNet 256, class-conditional LDM-4 (cin256-v2): 400.92M UNet on 64x64x3 latents of VQ-f4.

Paper: tables 3, 10 and 18 (FID 10.56; with guidance 1.5 FID 3.60; 250 DDIM steps; batch 1200, 178k steps,
271 V100-days). Source: table 15 and configs/latent-diffusion/cin256-v2.yaml. The table's 395M is not what its
row gives. One label in ten is dropped (never stated; the 1001st class is the null).

    python train.py --config=configs/imagenet_ldm4.py --workdir=runs/imagenet_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/imagenet_ldm4 --label=207 --guidance=3 --num=16
    python evaluate.py runs/imagenet_ldm4 --num=50000 --steps=250 --guidance=1.5 --spacing=original \\
        --reference=VIRTUAL_imagenet256_labeled.npz      # FID 3.60; the file is ADM's

The images: TFDS imagenet2012, or a folder with one subfolder per class (`--config.data.source=folder`).
"""

from ldm_jax.conditions import class_label
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.vq_f4(),
        dict(model_channels=192, channel_mult=(1, 2, 3, 5), attention_downsamples=(2, 4, 8), num_heads=1),
        class_label.section(1000, 512, drop_prob=0.1),
    )
    config.steps = 178_000
    config.batch_size = 1200
    config.optim.learning_rate = 1e-4
    config.latent_scale = 1.0
    sections.imagenet(config)
    return sections.finish(config, variant)
