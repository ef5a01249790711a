"""KL-f4: 256 px -> 64x64x3, 55.31M parameters.

Paper: table 8 (R-FID 0.27, PSNR 27.53, SSIM 0.82). Source of the numbers: the released
models/first_stage_models/kl-f4/config.yaml and the original's ImageNet recipe
in configs/autoencoder (two batches of 12 per step; learning rate 24 x 4.5e-6).

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_kl_f4.py --workdir=runs/kl_f4 \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/kl_f4 --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md

Any folder of images of 256 px or more will do: the original used OpenImages (shorter side to 384, random crops of 256).
The discriminator enters at step 50,001; until then the loss is L1 + LPIPS + 1e-6 KL.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.kl_f4())
    config.steps = 176_991
    sections.openimages(config)
    config.loss.update(disc_start=50_001, disc_weight=0.5)
    return sections.finish(config, variant)
