"""OpenImages 256, layout-to-image LDM-4: 246.28M UNet on 64x64x3 latents of VQ-f4, transformer of 16 layers.

Paper: tables 9 and 15 (FID 32.02, 200 DDIM steps, eta 0; 4.4M steps). Source: table 15 and the released
models/ldm/layout2img-openimages256/config.yaml. 92 tokens: 30 objects of three, and the crop's corners.

    python scripts/count_classes.py --name=open_images_v4/300k --data_dir=TFDS_DIR --most=352 \\
        --out=openimages_classes.txt
    python train.py --config=configs/openimages_layout_ldm4.py --workdir=runs/openimages_layout_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/openimages_layout_ldm4 --layout=boxes.json --steps=200
    python evaluate.py runs/openimages_layout_ldm4 --num=2048 --steps=200 --spacing=original \\
        --reference=runs/openimages_layout_ldm4 --reference-split=validation --reference-num=2048      # FID 32.02

Heads: the released weights were trained with one head as wide as the features, as table 15 says; the
released yaml's 32-wide heads (what today's original code builds from it) are
    --config.unet.num_heads=-1 --config.unet.num_head_channels=32
The parameters are the same, the function is not.

The images: TFDS open_images_v4, random squares, resized; flips. `300k` has them at about 300,000 pixels, the original
had larger ones (--config.data.name=open_images_v4/original). The original keeps 300 frequent classes and those that
COCO has too, 352 of 601; here they are the 352 most frequent: a box's "class" is the number of its line in the file,
from 0. Or a folder whose metadata.jsonl gives each image its "objects":
    --config.data.source=folder --config.data.path=IMAGES
"""

from ldm_jax.conditions import layout
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.vq_f4(),
        dict(
            model_channels=128,
            channel_mult=(1, 2, 3, 4),
            attention_downsamples=(2, 4, 8),
            num_heads=1,
            transformer_depth=3,
        ),
        layout.section(n_classes=352, dim=512, depth=16),
    )
    config.steps = 4_400_000
    config.batch_size = 24
    config.optim.learning_rate = 4.8e-5
    config.diffusion.update(end=0.0205, loss="l1")
    config.latent_scale = 1.0
    config.data.update(source="tfds", name="open_images_v4/300k", classes="openimages_classes.txt")
    config.data.update(resize="square", flip=True)
    return sections.finish(config, variant)
