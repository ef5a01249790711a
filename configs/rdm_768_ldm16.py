"""Retrieval-augmented 768 px LDM-16 (arXiv 2204.11824): 1335.48M UNet on 48x48x16 latents of KL-f16.

Source: configs/retrieval-augmented-diffusion/768x768.yaml. The context is a set of CLIP ViT-L/14 vectors of 768
numbers, which come with the data: the prompt's, and those of its nearest pictures. Batch and steps were not
published.

    python train.py --config=configs/rdm_768_ldm16.py --workdir=runs/rdm_768_ldm16 \\
        --config.first_stage.checkpoint=runs/kl_f16 \\
        --config.data.path=IMAGES_WITH_METADATA_JSONL
    python sample.py --workdir=runs/rdm_768_ldm16 --vectors=clip.npy --guidance=5
"""

from ldm_jax.conditions import vectors
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.kl_f16(),
        dict(
            model_channels=448,
            channel_mult=(1, 2, 3, 4),
            attention_downsamples=(1, 2, 4),
            num_head_channels=32,
            remat=True,
        ),
        vectors.section(number=1, dim=768),
        image_size=768,
    )
    config.steps = 500_000
    config.batch_size = 128
    config.optim.learning_rate = 1e-4
    config.diffusion.update(end=0.015)
    config.latent_scale = 0.22765929
    config.data.update(source="folder", crop="center")
    return sections.finish(config, variant)
