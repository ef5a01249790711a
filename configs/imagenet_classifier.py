"""ImageNet 256, the noise-aware classifier of latents that guides LDM-8 (LDM-8-G), and one for LDM-4.

Variants f8 (default: latents of VQ-f8, the encoder half of imagenet_ldm8's UNet) and f4 (VQ-f4, imagenet_ldm4's).
Paper: tables 10 and 18: LDM-8-G, classifier scale 10, 200 DDIM steps, eta 1: FID 7.76, IS 209.52 (without the
classifier FID 15.51, IS 79.03); the classifier took 12 V100-days. LDM-8-G counts 506M, LDM-8 395M: 111M are the
classifier. The paper's LDM-4-G has no classifier, it drops labels.
Source: the original's classifier.py: the UNet's configuration halved, attention pooling, t uniform, AdamW with weight
decay 0.01. Rate, batch and steps were never published: those of guided-diffusion's classifiers stand here.

    python train.py --config=configs/imagenet_classifier.py:f8 --workdir=runs/imagenet_classifier_f8 \\
        --config.guides=runs/imagenet_ldm8 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/imagenet_ldm8 --classifier=runs/imagenet_classifier_f8 --classifier-scale=10 \\
        --label=207 --num=16 --steps=200 --eta=1

    python sample.py --workdir=runs/imagenet_ldm8 --classifier=runs/imagenet_classifier_f8 --classifier-scale=10 \\
        --num=50 $(seq -f "--label=%g" 0 999) --steps=200 --eta=1 --spacing=original --npz --out=guided
    python evaluate.py guided/samples.npz --reference=VIRTUAL_imagenet256_labeled.npz      # FID 7.76: LDM of 4.8M steps

Before there is an LDM: --config.first_stage.checkpoint=runs/vq_f8 in place of --config.guides.
"""

from ldm_jax.recipes import sections

# first stage, width and levels of imagenet_ldm8 and imagenet_ldm4, attention (downsampling factors)
ROWS = {
    "f8": (sections.vq_f8(), 256, (1, 2, 4), (1, 2, 4)),
    "f4": (sections.vq_f4(), 192, (1, 2, 3, 5), (2, 4, 8)),
}
VARIANTS = tuple(ROWS)


def get_config(variant: str = "f8"):
    name, variant = sections.split_variant(variant, VARIANTS)
    first_stage, width, levels, attention = ROWS[name]
    network = dict(model_channels=width, channel_mult=levels, attention_downsamples=attention, num_head_channels=32)
    config = sections.classifier(first_stage, network)
    config.steps = 300_000
    config.batch_size = 256
    config.optim.update(learning_rate=3e-4, schedule="linear")
    config.latent_scale = 1.0
    sections.imagenet(config)
    return sections.finish(config, variant)
