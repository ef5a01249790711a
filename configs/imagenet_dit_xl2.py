"""ImageNet 256, class-conditional DiT-XL/2: a transformer of 675M on 32x32x4 latents of Stable Diffusion's autoencoder.

Paper: Peebles and Xie 2023, arXiv 2212.09748, tables 1 and 2 and section 4: 28 blocks, width 1152, 16 heads, patches
of 2x2, 119 Gflops; batch 256, AdamW without decay at 1e-4, flips, one label in ten dropped, EMA 0.9999, 7M steps. FID
9.62, with guidance 1.5 FID 2.27, by 250 DDPM steps. First stage: the paper's sd-vae-ft-ema, as a folder of diffusers.

    python convert.py --from sd-vae-ft-ema --to runs/sd_vae
    python train.py --config=configs/imagenet_dit_xl2.py --workdir=runs/imagenet_dit_xl2 \\
        --config.first_stage.checkpoint=runs/sd_vae --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/imagenet_dit_xl2 --label=207 --guidance=4 --num=16
    python evaluate.py runs/imagenet_dit_xl2 --num=50000 --steps=250 --eta=1 --guidance=1.5 \\
        --reference=VIRTUAL_imagenet256_labeled.npz      # ADM's file

The released weights in place of training (docs/weights.md):

    python convert.py --config=imagenet_dit_xl2 --from DiT-XL-2-256x256.pt --to runs/imagenet_dit_xl2 \\
        --config.first_stage.checkpoint=runs/sd_vae

The last layer has the released model's 8 outputs a pixel: the noise, which is trained and sampled with here, and the
variance of a step, which is not (the paper's FIDs are with it).

The images: TFDS imagenet2012, or a folder with one subfolder per class (`--config.data.source=folder`).
"""

from ldm_jax.conditions import class_label
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.kl_f8() | dict(recipe="first_stage_sd_vae"),
        {},
        class_label.section(1000, 1152, drop_prob=0.1, embedding_std=0.02),
    )
    sections.transformer(config, width=1152, depth=28, num_heads=16, learn_sigma=True)
    config.steps = 7_000_000
    config.batch_size = 256
    config.optim.update(learning_rate=1e-4, weight_decay=0.0)
    config.diffusion.update(schedule="linear", start=0.0001, end=0.02)
    config.latent_scale = 0.18215
    sections.imagenet(config)
    config.data.update(crop="center", flip=True, interpolation="bicubic")
    return sections.finish(config, variant)
