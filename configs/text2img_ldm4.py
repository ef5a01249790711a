"""Text-to-image LDM-4 (text2img256, the paper's first version): 403.62M UNet on 64x64x3 latents of VQ-f4.

Source: the released models/ldm/text2img256/config.yaml; its numbers are in version 1 of the paper only.

    python train.py --config=configs/text2img_ldm4.py --workdir=runs/text2img_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 \\
        --config.data.path=IMAGES_WITH_METADATA_JSONL
    python sample.py --workdir=runs/text2img_ldm4 --prompt="a painting of a squirrel" --guidance=5
    python evaluate.py runs/text2img_ldm4 --num=30000 --steps=100 --spacing=original \\
        --reference=runs/text2img_ldm4 --reference-split=validation --reference-num=30000 \\
        --choose=hash      # FID 16.79, on COCO

Heads: the released weights were trained with one head as wide as the features, as table 13 for its sibling says; the
released yaml's 32-wide heads (what today's original code builds from it) are
    --config.unet.num_heads=-1 --config.unet.num_head_channels=32
The parameters are the same, the function is not.

The images: a folder whose metadata.jsonl has a "text" for each, or TFDS coco_captions (each time one of its five
captions at random), in place of the last option:
    --config.data.source=tfds --config.data.name=coco_captions --config.data.split=train+restval \\
    --config.data.validation_split=val --config.data.path=TFDS_DIR
"""

from ldm_jax.conditions import text
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.vq_f4(),
        dict(model_channels=192, channel_mult=(1, 2, 3, 5), attention_downsamples=(2, 4, 8), num_heads=1),
        text.section(640, 32),
    )
    config.steps = 500_000
    config.batch_size = 28
    config.optim.learning_rate = 5.6e-5
    config.latent_scale = 1.0
    config.data.update(source="folder", crop="center")
    return sections.finish(config, variant)
