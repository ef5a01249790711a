"""KL-f16: 256 px -> 16x16x16, 69.61M parameters.

Paper: table 8 (R-FID 0.87, PSNR 24.08, SSIM 0.68). Source of the numbers: the released
models/first_stage_models/kl-f16/config.yaml and the original's ImageNet recipe in configs/autoencoder.

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_kl_f16.py --workdir=runs/kl_f16 \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/kl_f16 --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md

Any folder of images of 256 px or more will do: the original used OpenImages (shorter side to 384, random crops of 256).
The discriminator enters at step 50,001; until then the loss is L1 + LPIPS + 1e-6 KL.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.kl_f16())
    config.steps = 442_998
    sections.openimages(config)
    config.loss.update(disc_start=50_001, disc_weight=0.5)
    return sections.finish(config, variant)
