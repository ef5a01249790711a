"""FFHQ 256, unconditional LDM-4: 274.06M UNet on 64x64x3 latents of VQ-f4.

Paper: tables 1, 12 and 18 (FID 4.98, 200 DDIM steps, eta 1; 635k steps on one A100, 26 V100-days).
Source of the numbers: table 12 and the released models/ldm/ffhq256/config.yaml.

    python train.py --config=configs/ffhq_ldm4.py --workdir=runs/ffhq_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 --config.data.path=FFHQ_DIR
    python sample.py --workdir=runs/ffhq_ldm4 --num=16 --steps=200 --eta=1
    python evaluate.py runs/ffhq_ldm4 --num=50000 --steps=200 --eta=1 --spacing=original      # FID 4.98

The images: a folder; FFHQ comes as PNG or WebP files (thumbnails128x128 is the wrong one) and is in no
TFDS catalogue. The original trains on 60,000 images and validates on 10,000, without flips.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(sections.vq_f4(), sections.faces_unet())
    config.steps = 635_000
    config.batch_size = 42
    config.optim.learning_rate = 8.4e-5
    config.latent_scale = 1.0  # VQ latents have a standard deviation near 1 (appendix G)
    config.data.update(source="folder", validation_fraction=1 / 7, interpolation="bilinear")
    return sections.finish(config, variant)
