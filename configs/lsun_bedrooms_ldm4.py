"""LSUN-Bedrooms 256, unconditional LDM-4: 274.06M UNet on 64x64x3 latents of VQ-f4.

Paper: tables 1, 12 and 18 (FID 2.95, 200 DDIM steps, eta 1; 1.9M steps on one A100, 55 to 60 V100-days).
Source of the numbers: table 12 and the released models/ldm/lsun_beds256/config.yaml.

    python train.py --config=configs/lsun_bedrooms_ldm4.py --workdir=runs/lsun_bedrooms_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/lsun_bedrooms_ldm4 --num=16 --steps=200 --eta=1
    python evaluate.py runs/lsun_bedrooms_ldm4 --num=50000 --steps=200 --eta=1 --spacing=original \\
        --reference=VIRTUAL_lsun_bedroom256.npz      # FID 2.95; the file is ADM's

The images: TFDS lsun/bedroom or any folder. As in the original: centre square, bicubic to 256, flips.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(sections.vq_f4(), sections.faces_unet())
    config.steps = 1_900_000
    config.batch_size = 48
    config.optim.learning_rate = 9.6e-5
    config.latent_scale = 1.0  # VQ latents have a standard deviation near 1 (appendix G)
    config.data.update(source="tfds", name="lsun/bedroom", flip=True)
    return sections.finish(config, variant)
