"""First stages of the paper's table 8 that were never released; the variant says which.

    vq_f2      128x128x2, 2048 codes  (R-FID 0.16)     kl_f2       128x128x2  (R-FID 0.086)
    vq_f2_n64  128x128x2, 64 codes    (R-FID 0.40)     kl_f16_c8   16x16x8    (R-FID 2.63)
    vq_f4_n256 64x64x3, 256 codes     (R-FID 0.47)     kl_f32_c16  8x8x16     (R-FID 7.3)
    vq_f32     8x8x16, 16384 codes    (R-FID 31.83)    vq_f32_c32  8x8x32, the first stage of LDM-32 in
                                                       tables 13 and 14, which table 8 lacks
Latent sizes for 256 px. Table 8 gives f, codes and channels; widths and steps are those of the released
neighbours, and f = 2 has levels (1, 2).

    python scripts/make_lpips_weights.py            # once: LPIPS weights
    python train.py --config=configs/first_stage_table8.py:vq_f2 --workdir=runs/vq_f2 \\
        --config.data.source=folder --config.data.path=YOUR_IMAGES
    python evaluate.py runs/vq_f2 --num=50000      # the paper: ImageNet's validation pictures, see docs/paper.md
"""

from ldm_jax.recipes import sections

MODELS = {
    "vq_f2": sections.vq_f2(),
    "vq_f2_n64": sections.vq_f2() | dict(n_embed=64),
    "vq_f4_n256": sections.vq_f4() | dict(n_embed=256),
    "vq_f32": sections.vq_f32(),
    "vq_f32_c32": sections.vq_f32(channels=32),
    "kl_f2": sections.kl_f4() | dict(ch_mult=(1, 2), z_channels=2, embed_dim=2),
    "kl_f16_c8": sections.kl_f16() | dict(z_channels=8, embed_dim=8),
    "kl_f32_c16": sections.kl_f32() | dict(z_channels=16, embed_dim=16),
}
VARIANTS = tuple(MODELS)


def get_config(variant: str = "vq_f2"):
    name, variant = sections.split_variant(variant, VARIANTS)
    config = sections.autoencoder(MODELS[name] | dict(recipe=f"first_stage_table8:{name}"))
    config.steps = 500_000
    sections.openimages(config)
    if name.startswith("vq"):
        config.loss.update(disc_start=250_001, disc_weight=0.75)
    return sections.finish(config, variant)
