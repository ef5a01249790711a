"""VQ-f8 with 256 codes: 256 px -> 32x32x4, 67.65M parameters.

Paper: table 8 (R-FID 1.49, PSNR 22.35, SSIM 0.62). Source of the numbers: the released
models/first_stage_models/vq-f8-n256/config.yaml and the original's ImageNet recipe in configs/autoencoder.

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_vq_f8_n256.py --workdir=runs/vq_f8_n256 \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/vq_f8_n256 --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md

Any folder of images of 256 px or more will do: the original used OpenImages (shorter side to 384, random crops of 256).
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.vq_f8_n256())
    config.steps = 1_608_649
    sections.openimages(config)
    config.loss.update(disc_start=250_001, disc_weight=0.75)
    return sections.finish(config, variant)
