"""Places, inpainting LDM-4 (inpainting_big): 387.25M UNet on 64x64x3 latents of VQ-f4 without attention.

Paper: table 7 (FID 1.50 on 512 px; batch and number of iterations of the big model are not stated).
Source: the released models/ldm/inpainting_big/config.yaml: warm-up over 1000 steps to a tenth of the scaled
base rate, then a cosine that ends at step 50,000. Input: z, the latent of the masked picture, the mask: 7 channels.

    python train.py --config=configs/places_inpainting_big_ldm4.py --workdir=runs/places_inpainting_big_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4_noattn --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/places_inpainting_big_ldm4 --image=picture.png --mask=hole.png

    python sample.py --workdir=runs/places_inpainting_big_ldm4 --image=CROPS --mask=HOLES --steps=50 \\
        --spacing=original --npz --out=filled
    python evaluate.py filled/samples.npz --reference=CROPS      # FID 2.40: docs/paper.md

The images: TFDS places365_small, or any folder (--config.data.source=folder --config.data.path=IMAGES).
"""

from ldm_jax.conditions import inpaint
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.vq_f4_noattn(),
        dict(
            model_channels=256,
            channel_mult=(1, 2, 3, 4),
            attention_downsamples=(2, 4, 8),
            num_heads=8,
            resblock_updown=True,
        ),
        inpaint.section(),
    )
    config.steps = 360_000
    config.batch_size = 128
    config.optim.update(learning_rate=1.28e-5, schedule="cosine", warmup_steps=1000, warmup_fraction=0.01)
    config.optim.update(decay_steps=50_000, final_fraction=1e-3)
    config.diffusion.update(end=0.0205, loss="l1")
    config.latent_scale = 1.0
    config.data.update(source="tfds", name="places365_small", crop="random", resize="none", masks="train_256")
    return sections.finish(config, variant)
