"""VQ-f16: 256 px -> 16x16x8, 16384 codes, 69.59M parameters.

Paper: table 8 (R-FID 5.15, PSNR 20.83, SSIM 0.54). Source of the numbers: the released
models/first_stage_models/vq-f16/config.yaml and the original's ImageNet recipe in configs/autoencoder.

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_vq_f16.py --workdir=runs/vq_f16 \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/vq_f16 --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md

Any folder of images of 256 px or more will do: the original used OpenImages (shorter side to 384, random crops of 256).
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.vq_f16())
    config.steps = 1_101_166
    sections.openimages(config)
    config.loss.update(disc_start=250_001, disc_weight=0.75, disc_layers=2)
    return sections.finish(config, variant)
