"""Landscapes 256, semantic map to image LDM-4: 215.23M UNet on 64x64x3 latents of VQ-f4 and a map's 3 channels.

Paper: section 4.3.2 and table 15 (whose column says f = 8; text and released yaml say 4). Source: the released
models/ldm/semantic_synthesis256/config.yaml. Attention stands in the middle block alone: the yaml's list of
levels (32, 16, 8) names none that this UNet has.

    python train.py --config=configs/landscapes_semantic_ldm4.py --workdir=runs/landscapes_semantic_ldm4 \\
        --config.first_stage.checkpoint=runs/vq_f4 \\
        --config.data.path=IMAGES_WITH_METADATA_JSONL
    python sample.py --workdir=runs/landscapes_semantic_ldm4 --segmentation=map.png

The images: a folder whose metadata.jsonl gives each a "segmentation" (a PNG of class numbers, 182 classes of
COCO-Stuff); random crops of 256 from a shorter side of 384.
"""

from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    return sections.finish(sections.landscapes(image_size=256, batch_size=48, learning_rate=4.8e-5), variant)
