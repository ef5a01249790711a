"""ImageNet 256, class-conditional LDM-8 (cin256): 394.98M UNet on 32x32x4 latents of VQ-f8.

Paper: tables 10, 13 and 18 (FID 17.41, 200 DDIM steps, eta 1; 2.9M steps, 79 V100-days).
Source: table 13 and the released models/ldm/cin256/config.yaml. No label is ever dropped: guidance is by a classifier,
imagenet_classifier.py.

    python train.py --config=configs/imagenet_ldm8.py --workdir=runs/imagenet_ldm8 \\
        --config.first_stage.checkpoint=runs/vq_f8 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/imagenet_ldm8 --label=207 --num=16 --steps=200 --eta=1
    python evaluate.py runs/imagenet_ldm8 --num=50000 --steps=200 --eta=1 --spacing=original \\
        --reference=VIRTUAL_imagenet256_labeled.npz      # FID 17.41; the file is ADM's

Heads: the released weights were trained with one head as wide as the features, as table 13 says; the
released yaml's 32-wide heads (what today's original code builds from it) are
    --config.unet.num_heads=-1 --config.unet.num_head_channels=32
The parameters are the same, the function is not.
"""

from ldm_jax.conditions import class_label
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.vq_f8(),
        dict(model_channels=256, channel_mult=(1, 2, 4), attention_downsamples=(1, 2, 4), num_heads=1),
        class_label.section(1000, 512),
    )
    config.steps = 2_900_000
    config.batch_size = 64
    config.optim.learning_rate = 6.4e-5
    config.latent_scale = 1.0
    sections.imagenet(config)
    return sections.finish(config, variant)
