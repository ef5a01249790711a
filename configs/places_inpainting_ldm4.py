"""Places, inpainting LDM-4: 215.23M UNet on 64x64x3 latents of VQ-f4 without attention.

Paper: tables 6, 7 and 15 (360k steps of 128 on eight V100; never released). Source: table 15, whose learning
rate 1e-6 is taken as the base rate of one sample: 128 x 1e-6. Attention stands in the middle block alone.

    python train.py --config=configs/places_inpainting_ldm4.py --workdir=runs/places_inpainting_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4_noattn --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/places_inpainting_ldm4 --image=picture.png --mask=hole.png

    python sample.py --workdir=runs/places_inpainting_ldm4 --image=CROPS --mask=HOLES --steps=50 \\
        --spacing=original --npz --out=filled
    python evaluate.py filled/samples.npz --reference=CROPS      # FID 2.37: docs/paper.md

The images: TFDS places365_small, or any folder (--config.data.source=folder --config.data.path=IMAGES).
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    return sections.finish(sections.places_inpainting(sections.vq_f4_noattn()), variant)
