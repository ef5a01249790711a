"""Places, inpainting on pixels against latents: the models of table 6, of the same number of parameters.

Variants f1 (pixels), f1_narrow, kl_f4, vq_f4, vq_f4_noattn (default; "attn" is the first stage's). The paper does not
give the network of its LDM-1: f1 has the width of LDM-1 in tables 13 and 14 (192) and levels that come near 215M;
f1_narrow is LDM-4's network (table 15) with two more levels of its first width in front, the least work that a UNet on
pixels can do. 221.58M and 220.52M parameters, the others 215.23M to 215.24M.

    python train.py --config=configs/places_inpainting_compression.py:vq_f4 \\
        --workdir=runs/inpainting_vq_f4 --config.first_stage.checkpoint=runs/vq_f4 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/inpainting_vq_f4 --image=picture.png --mask=hole.png

    python sample.py --workdir=runs/inpainting_vq_f4 --image=CROPS --mask=HOLES --steps=50 --spacing=original \\
        --npz --out=filled
    python evaluate.py filled/samples.npz --reference=CROPS      # FID 14.99 after 6 epochs, 2k pictures: docs/paper.md
"""

from ldm_jax.recipes import sections

# first stage, UNet width and levels, factor of the latents (0: measured)
ROWS = {
    "f1": (sections.pixels(), 192, (1, 1, 2, 4, 4), 1.0),
    "f1_narrow": (sections.pixels(), 128, (1, 1, 1, 4, 8), 1.0),
    "kl_f4": (sections.kl_f4(), 128, (1, 4, 8), 0.0),
    "vq_f4": (sections.vq_f4(), 128, (1, 4, 8), 1.0),
    "vq_f4_noattn": (sections.vq_f4_noattn(), 128, (1, 4, 8), 1.0),
}
VARIANTS = tuple(ROWS)


def get_config(variant: str = "vq_f4_noattn"):
    name, variant = sections.split_variant(variant, VARIANTS)
    first_stage, width, levels, scale = ROWS[name]
    config = sections.places_inpainting(first_stage, width, levels)
    config.latent_scale = scale
    return sections.finish(config, variant)
