"""VQ-f4: 256 px -> 64x64x3, 8192 codes, 55.32M parameters.

Paper: table 8 (R-FID 0.58, PSNR 27.43, SSIM 0.82). Source of the numbers: the released
models/first_stage_models/vq-f4/config.yaml and the original's ImageNet recipe
in configs/autoencoder (two batches of 12 per step; learning rate 24 x 4.5e-6).

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_vq_f4.py --workdir=runs/vq_f4 \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/vq_f4 --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md

Any folder of images of 256 px or more will do: the original used OpenImages (random crops of 256, not resized).
The released file says disc_start 0, which fits a resumed run; this starts like the other VQ models.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.vq_f4())
    config.steps = 533_066
    sections.openimages(config, crop_only=True)
    config.loss.update(disc_start=250_001, disc_weight=0.75)
    return sections.finish(config, variant)
