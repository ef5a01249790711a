"""The autoencoder of Stable Diffusion: 256 px -> 32x32x4, 83.65M parameters, the shape of KL-f8.

Others trained its weights and published them as folders of diffusers, for example stabilityai/sd-vae-ft-mse. They are
converted, not trained here. Diffusion models multiply its latents by 0.18215:

    python convert.py --from sd-vae-ft-mse --to runs/sd_vae
    python train.py --config=configs/text2img_ldm8.py --workdir=runs/ldm --config.first_stage.checkpoint=runs/sd_vae \\
        --config.data.path=IMAGES_WITH_METADATA_JSONL
    python evaluate.py runs/sd_vae --num=5000

Training goes on from the converted weights, with an untrained discriminator and the loss and optimiser of KL-f8:

    python train.py --config=configs/first_stage_sd_vae.py --workdir=runs/sd_vae --config.steps=256803 \\
        --config.data.path=YOUR_IMAGES
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.autoencoder(sections.kl_f8() | dict(recipe="first_stage_sd_vae"))
    config.latent_scale = 0.18215  # what diffusion models multiply its latents by
    sections.channel_latents(config)
    config.steps = 246_803
    sections.openimages(config)
    config.loss.update(disc_start=50_001, disc_weight=0.5)
    return sections.finish(config, variant)
