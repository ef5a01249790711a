"""ImageNet, x4 super-resolution LDM-4 (bsr_sr): 113.62M UNet on 64x64x3 latents of VQ-f4 and the 64x64 picture.

Paper: tables 5, 11 and 15 (FID 2.8 / 4.8 with bicubic small pictures, 100 steps; 860k steps; its 169M counts the
first stage). Source: table 15 and the released models/ldm/bsr_sr/config.yaml, whose small pictures come from the
light BSR pipeline; the paper's bicubic model is --config.data.degradation=bicubic (never released).

    python train.py --config=configs/imagenet_superres_ldm4.py --workdir=runs/imagenet_superres_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/imagenet_superres_ldm4 --image=small.png --steps=100
    python evaluate.py runs/imagenet_superres_ldm4 --num=50000 --steps=100 --spacing=original \\
        --reference=runs/imagenet_superres_ldm4 --reference-split=validation      # FID 2.8, of the bicubic model
"""

from ldm_jax.conditions import superres
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.vq_f4(),
        dict(model_channels=160, channel_mult=(1, 2, 2, 4), attention_downsamples=(8,), num_head_channels=32),
        superres.section(),
    )
    config.steps = 860_000
    config.batch_size = 64
    config.optim.learning_rate = 6.4e-5
    config.diffusion.update(end=0.0155)
    config.latent_scale = 1.0
    sections.imagenet(config)
    config.data.update(resize="square", smallest_square=0.5, interpolation="box")
    config.data.degradation = "bsr_light"
    return sections.finish(config, variant)
