"""Sections that recipes share. A recipe = one call here + the numbers that make it that model + a docstring.

Every number is final: `optim.learning_rate` is the rate that is used and `batch_size` is the global batch,
whatever the number of devices or accumulation steps. Every option can be overridden:
`python train.py --config=configs/X.py --config.optim.learning_rate=5e-5`.
"""

from ml_collections import ConfigDict


def _base(task: str, image_size: int) -> ConfigDict:
    return ConfigDict(
        dict(
            task=task,
            seed=0,
            steps=100_000,
            batch_size=48,
            dtype="float32",  # compute type of the networks: float32 | bfloat16; parameters stay float32
            data=dict(
                source="shapes",  # shapes (drawn on the fly) | folder | tfds
                path="",  # folder: the images; tfds: data_dir
                name="",  # tfds: name, e.g. celeb_a_hq/256
                split="train",  # tfds: the training split
                validation_split="validation",  # tfds: the validation split
                validation_fraction=0.05,  # folder: share kept for validation, by hash of the name
                image_size=image_size,
                channels=3,  # folder and tfds: 1 or 3
                resize="shorter",  # shorter: shorter side to resize_to, keeps the aspect | stretch | none
                resize_to=0,  # 0 = image_size
                crop="center",  # center | random | none
                flip=False,  # random horizontal flips
                interpolation="bicubic",
                workers=0,  # worker processes that decode; 0 = a thread
                validation_images=512,  # at most so many in a validation pass
            ),
            mesh=dict(data=-1, fsdp=1),
            every=dict(log=50, evaluate=5000, picture=5000, checkpoint=5000),  # steps; 0 = never
            keep=3,  # checkpoints
            optim=dict(
                name="adamw",
                learning_rate=1e-4,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.01,
                schedule="constant",  # constant | linear_warmup | cosine
                warmup_steps=0,
                final_fraction=0.0,  # cosine: last rate / learning_rate
                clip_norm=0.0,  # 0 = off
                accumulate=1,
            ),
        )
    )


def _first_stage(recipe: str, kind: str, f: int, **numbers) -> dict:
    mult = {1: (1,), 2: (1, 2), 4: (1, 2, 4), 8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}[f]
    section = dict(
        kind=kind,  # kl | vq | identity (pixel space)
        recipe=recipe,  # the recipe that trains it, for messages
        checkpoint="",  # LDM: the first stage's run directory; "random" = untrained, for smoke tests
        ch=128,
        ch_mult=mult,  # f = 2 ** (len(ch_mult) - 1)
        num_res_blocks=2,
        attn_resolutions=(),
        attn_type="vanilla",  # vanilla | linear | none
        resolution=256,
        in_channels=3,
        out_channels=3,
        z_channels=3,
        embed_dim=3,
        dropout=0.0,
        n_embed=8192,  # vq: codes
        beta=0.25,  # vq: weight of one side of the codebook loss
        legacy_beta=True,  # vq: beta on the codebook side, as the original has it; False = on the encoder side
    )
    return section | numbers


def vq_f4() -> dict:
    return _first_stage("first_stage_vq_f4", "vq", 4)


def vq_f8() -> dict:
    return _first_stage("first_stage_vq_f8", "vq", 8, attn_resolutions=(32,), z_channels=4, embed_dim=4, n_embed=16384)


def kl_f4() -> dict:
    return _first_stage("first_stage_kl_f4", "kl", 4)


def kl_f8() -> dict:
    return _first_stage("first_stage_kl_f8", "kl", 8, ch_mult=(1, 2, 4, 4), z_channels=4, embed_dim=4)


def small_first_stage(
    recipe: str, kind: str, f: int, ch: int, z_channels: int, resolution: int, **numbers
) -> dict:
    """A first stage for small images; takes any field of `_first_stage`."""
    return _first_stage(
        recipe, kind, f, ch=ch, z_channels=z_channels, embed_dim=z_channels, resolution=resolution, **numbers
    )


def autoencoder(first_stage: dict, image_size: int = 256) -> ConfigDict:
    """First-stage training: L1 + LPIPS + PatchGAN (paper, section 3.1 and appendix G)."""
    config = _base("first_stage", image_size)
    config.first_stage = ConfigDict(first_stage)
    config.loss = ConfigDict(
        dict(
            perceptual_weight=1.0,
            lpips_net="vgg16",  # vgg16 | alex
            lpips_weights="weights",  # folder of the files that scripts/make_lpips_weights.py makes
            kl_weight=1e-6,
            codebook_weight=1.0,
            disc_start=50_001,  # the generator sees the discriminator from this step on
            disc_learns_from=-1,  # the discriminator learns from this step on; -1 = disc_start, as the original
            disc_weight=0.5,
            disc_loss="hinge",  # hinge | vanilla
            disc_layers=3,
            disc_ndf=64,
        )
    )
    config.optim.update(name="adam", b1=0.5, b2=0.9, weight_decay=0.0)
    return config


def unconditional_ldm(first_stage: dict, unet: dict, image_size: int = 256) -> ConfigDict:
    """Second stage without a condition: UNet on the first stage's latents (paper, section 3.2)."""
    config = _base("ldm", image_size)
    config.first_stage = ConfigDict(first_stage)
    config.latent_scale = 0.0  # 0 = measured over latent_scale_batches batches and kept with the run
    config.latent_scale_batches = 16
    config.unet = ConfigDict(
        dict(
            model_channels=128,
            out_channels=first_stage["embed_dim"],
            num_res_blocks=2,
            channel_mult=(1, 2, 4),
            attention_downsamples=(),  # levels with attention, as downsampling factors of the latent
            num_heads=-1,
            num_head_channels=-1,
            use_scale_shift_norm=False,
            resblock_updown=False,
            dropout=0.0,
            remat=False,  # recompute activations in the backward pass: less memory, about 1/3 more time
        )
        | unet
    )
    config.diffusion = ConfigDict(
        dict(
            schedule="scaled_linear",  # the original's "linear"
            timesteps=1000,
            start=0.0015,
            end=0.0195,
            prediction="eps",  # eps | x0 | v
            loss="l2",  # l1 | l2
            weighting="none",  # none | min_snr
            elbo_weight=0.0,
            learn_logvar=False,
        )
    )
    config.ema = ConfigDict(dict(decay=0.9999, warmup=True))
    config.sample = ConfigDict(dict(steps=50, eta=0.0, number=16, seed=0))
    return config


def finish(config: ConfigDict, variant: str) -> ConfigDict:
    """Applies the variant: "" = the recipe, "tiny" = the same structure shrunk to seconds on a CPU."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; there are: (none), tiny")
    if variant == "tiny":
        _shrink(config)
    return config.lock()


def _shrink(config: ConfigDict) -> None:
    f = 2 ** (len(config.first_stage.ch_mult) - 1)
    size = min(16 * f, config.data.image_size)
    config.update(batch_size=8, steps=4)
    config.data.update(source="shapes", image_size=size, resize="shorter", resize_to=0, workers=0)
    config.data.validation_images = 8
    config.every.update(log=1, evaluate=4, picture=4, checkpoint=2)
    config.optim.update(accumulate=1, warmup_steps=0)
    config.first_stage.update(ch=32, num_res_blocks=1, resolution=size, n_embed=64)
    if config.first_stage.attn_resolutions:
        config.first_stage.attn_resolutions = (size // f,)
    if config.task == "first_stage":
        config.loss.update(perceptual_weight=0.0, disc_start=2, disc_learns_from=-1, disc_ndf=8)
    else:
        config.first_stage.checkpoint = "random"
        config.latent_scale_batches = 2
        config.unet.update(model_channels=32, num_res_blocks=1)
        config.sample.update(steps=4, number=4)
