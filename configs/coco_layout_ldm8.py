"""COCO 256, layout-to-image LDM-8: 312.2M UNet on 32x32x4 latents of VQ-f8.

Paper: tables 9 and 15 (FID 42.06, 100 steps; 170k steps). Source: table 15 (never released). The table's 345M
for everything does not fit the 16 transformer layers of table 17, which would give 371M; 8 layers give 345.9M
and are built here.

    python train.py --config=configs/coco_layout_ldm8.py --workdir=runs/coco_layout_ldm8 \\
        --config.first_stage.checkpoint=runs/vq_f8 --config.data.path=TFDS_DIR
    python sample.py --workdir=runs/coco_layout_ldm8 --layout=boxes.json --steps=100
    python evaluate.py runs/coco_layout_ldm8 --num=2048 --steps=100 --spacing=original \\
        --reference=runs/coco_layout_ldm8 --reference-split=validation --reference-num=2048      # FID 42.06

The images: TFDS coco/2017 with its boxes of 80 classes, or a folder whose metadata.jsonl gives each image its
"objects": --config.data.source=folder --config.data.path=IMAGES.
"""

from ldm_jax.conditions import layout
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.vq_f8(),
        dict(
            model_channels=192,
            channel_mult=(1, 2, 4),
            attention_downsamples=(1, 2, 4),
            num_heads=1,
            transformer_depth=2,
            dropout=0.1,
        ),
        layout.section(n_classes=80, dim=512, depth=8) | dict(flags=("group",), min_area=1e-5),
    )
    config.steps = 170_000
    config.batch_size = 48
    config.optim.learning_rate = 4.8e-5
    config.latent_scale = 1.0
    config.data.update(source="tfds", name="coco/2017", crop="random", flip=True)
    return sections.finish(config, variant)
