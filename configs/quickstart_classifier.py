"""A classifier of shapes in noised latents, which guides quickstart_ldm: minutes on a laptop.

    python train.py --config=configs/quickstart_classifier.py --workdir=runs/quickstart/classifier \\
        --config.guides=runs/quickstart/ldm
    python sample.py --workdir=runs/quickstart/ldm --classifier=runs/quickstart/classifier --classifier-scale=2 \\
        --label=9 --num=16 --steps=100 --eta=1

The classes are ldm_jax/data/shapes.py's CLASS_NAMES, colour and kind of the main shape; simple scenes have the 32 of
SIMPLE_KINDS. First stage and latent scale are those of the LDM.
"""

from ldm_jax.recipes import laptop, sections


def get_config(variant: str = ""):
    config = sections.classifier(
        laptop.quickstart_first_stage(),
        dict(
            n_classes=64,
            model_channels=32,
            num_res_blocks=1,
            channel_mult=(1, 2, 4),
            attention_downsamples=(4,),
            num_head_channels=32,
        ),
        image_size=32,
    )
    config.steps = 2000
    config.batch_size = 32
    config.optim.update(learning_rate=1e-3, schedule="cosine", warmup_steps=100, clip_norm=1.0, weight_decay=0.05)
    config.ema.decay = 0.998
    config.every.update(evaluate=500, picture=0, checkpoint=500)
    config.data.update(simple_scenes=True, validation_images=256)
    return sections.finish(config, variant)
