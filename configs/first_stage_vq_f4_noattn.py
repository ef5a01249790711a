"""VQ-f4 without attention: 256 px -> 64x64x3, 8192 codes, 53.22M parameters; the inpainting model's first stage.

Paper: table 8 (R-FID 1.06, PSNR 25.21, SSIM 0.76). Source of the numbers: the released
models/first_stage_models/vq-f4-noattn/config.yaml and the original's ImageNet recipe in configs/autoencoder.
No attention in the middle blocks either, so its memory grows with the area alone.

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_vq_f4_noattn.py --workdir=runs/vq_f4_noattn \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/vq_f4_noattn --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md

Any folder of images of 256 px or more will do: the original used OpenImages (random crops
of 256 of the images as they are).
The released file says disc_start 11, which fits a resumed run; this starts like the other VQ models.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.vq_f4_noattn())
    config.steps = 658_131
    sections.openimages(config, crop_only=True)
    config.loss.update(disc_start=250_001, disc_weight=0.75)
    return sections.finish(config, variant)
