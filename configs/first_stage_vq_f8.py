"""VQ-f8: 256 px -> 32x32x4, 16384 codes, 67.72M parameters.

Paper: table 8 (R-FID 1.14, PSNR 23.07, SSIM 0.65). Source of the numbers: the released
models/first_stage_models/vq-f8/config.yaml and the original's ImageNet recipe
in configs/autoencoder (two batches of 12 per step; learning rate 24 x 4.5e-6).

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_vq_f8.py --workdir=runs/vq_f8 \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/vq_f8 --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md

Any folder of images of 256 px or more will do: the original used OpenImages (shorter side to 384, random crops of 256).
The released file says disc_start 1, which fits a resumed run; this starts like the other VQ models.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.vq_f8())
    config.steps = 971_043
    sections.openimages(config)
    config.loss.update(disc_start=250_001, disc_weight=0.6, disc_layers=2)
    return sections.finish(config, variant)
