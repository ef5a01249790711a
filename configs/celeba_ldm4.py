"""CelebA-HQ 256, unconditional LDM-4: 274.06M UNet on 64x64x3 latents of VQ-f4.

Paper: tables 1, 12 and 18 (FID 5.11, 500 DDIM steps, eta 0; 410k steps on one A100, 14.4 V100-days).
Source of the numbers: table 12 and the released models/ldm/celeba256/config.yaml.

    python train.py --config=configs/celeba_ldm4.py --workdir=runs/celeba_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/celeba_ldm4 --num=16 --steps=200
    python evaluate.py runs/celeba_ldm4 --num=50000 --steps=500 --spacing=original      # FID 5.11

The images: any folder (`--config.data.source=folder --config.data.path=DIR`) or TFDS celeb_a_hq/256.
The original trains on 25,000 images and validates on 5,000, without flips.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(sections.vq_f4(), sections.faces_unet())
    config.steps = 410_000
    config.batch_size = 48
    config.optim.learning_rate = 9.6e-5
    config.latent_scale = 1.0  # VQ latents have a standard deviation near 1 (appendix G)
    config.data.update(source="tfds", name="celeb_a_hq/256", split="train[:25000]")
    config.data.update(validation_split="train[25000:]", interpolation="bilinear")
    return sections.finish(config, variant)
