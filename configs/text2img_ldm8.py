"""Text-to-image LDM-8 (txt2img-1p4B): 872.30M UNet on 32x32x4 latents of KL-f8, 542.90M text encoder.

Paper: tables 2 and 15 (COCO FID 23.31; with guidance 1.5 FID 12.63; 250 DDIM steps; LAION-400M, batch 680,
390k steps). Source: table 15 and configs/latent-diffusion/txt2img-1p4B-eval.yaml; its learning rate is 5e-5,
the table's 1e-4. "1.45B" counts the text encoder's unused output head (39.10M), which is not built here.

    python train.py --config=configs/text2img_ldm8.py --workdir=runs/text2img_ldm8 \\
        --config.first_stage.checkpoint=runs/kl_f8 \\
        --config.data.path=IMAGES_WITH_METADATA_JSONL
    python sample.py --workdir=runs/text2img_ldm8 --prompt="a painting of a squirrel" --guidance=5
    python evaluate.py runs/text2img_ldm8 --num=30000 --steps=250 --guidance=1.5 --spacing=original \\
        --reference=runs/text2img_ldm8 --reference-split=validation --reference-num=30000 \\
        --choose=hash      # FID 12.63, on COCO

The images: a folder whose metadata.jsonl has a "text" for each, or TFDS coco_captions (each time one of its five
captions at random), in place of the last option:
    --config.data.source=tfds --config.data.name=coco_captions --config.data.split=train+restval \\
    --config.data.validation_split=val --config.data.path=TFDS_DIR
"""

from ldm_jax.conditions import text
from ldm_jax.recipes import sections


def get_config(variant: str = ""):
    config = sections.ldm(
        sections.kl_f8(),
        dict(
            model_channels=320,
            channel_mult=(1, 2, 4, 4),
            attention_downsamples=(1, 2, 4),
            num_heads=8,
            legacy=False,
            remat=True,
        ),
        text.section(1280, 32),
    )
    config.steps = 390_000
    config.batch_size = 680
    config.optim.learning_rate = 1e-4
    config.diffusion.update(start=0.00085, end=0.012)
    config.latent_scale = 0.18215
    config.data.update(source="folder", crop="center")
    return sections.finish(config, variant)
