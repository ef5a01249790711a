"""Sections that recipes share; those of conditions are in ldm_jax/conditions.

A recipe = one call here + the numbers that make it that model + a docstring.
Every number is final: `optim.learning_rate` is the rate that is used and `batch_size` is the global batch,
whatever the number of devices or accumulation steps. Every option can be overridden:
`python train.py --config=configs/X.py --config.optim.learning_rate=5e-5`.
"""

from ml_collections import ConfigDict

from ldm_jax.conditions import inpaint, needs_context, none, semantic
from ldm_jax.errors import ConfigError


def _base(task: str, image_size: int) -> ConfigDict:
    return ConfigDict(
        dict(
            task=task,
            seed=0,
            steps=100_000,
            batch_size=48,
            init_from="",  # a run or an exported folder: begin with its parameters where they fit
            dtype="float32",  # compute type of the networks: float32 | bfloat16; parameters stay float32
            # Precision of float32 products in networks: default (the device's: TF32 on GPUs, bfloat16 on TPUs) | high |
            # highest (exact). First stages are always exact when they encode and decode for a diffusion model.
            matmul_precision="default",
            data=dict(
                source="shapes",  # shapes (drawn on the fly) | folder | tfds
                scenes=50_000,  # shapes: how many
                simple_scenes=False,  # shapes: larger, fewer, on plain backgrounds
                path="",  # folder: the images; tfds: data_dir
                name="",  # tfds: name, e.g. celeb_a_hq/256
                split="train",  # tfds: the training split
                classes="",  # tfds: file of the names of the objects' classes to keep, one a line; "" = all
                validation_split="validation",  # tfds: the validation split
                validation_fraction=0.05,  # folder: share kept for validation, by hash of the name
                image_size=image_size,
                channels=3,  # folder and tfds: 1 or 3
                resize="shorter",  # shorter: shorter side to resize_to, keeps the aspect | stretch | none | square
                resize_to=0,  # 0 = image_size
                smallest_square=0.0,  # square: a random one of at least this share of the shorter side; 0 = image_size
                crop="center",  # center | random | none
                flip=False,  # random horizontal flips
                degradation="bicubic",  # superres: bicubic | bsr | bsr_light
                masks="train_256",  # inpaint: LaMa's train_256, thick_256, thick_512, medium_..., or given
                interpolation="bicubic",
                workers=-1,  # worker processes that decode; 0 = threads alone; -1 = as many as suit the cores
                validation_images=512,  # at most so many in a validation pass
                cache_latents="",  # LDM: a folder for the latents of all training images, made once, then read
            ),
            mesh=dict(data=-1, fsdp=1),
            # Steps; 0 = never; the end is saved. checkpoint_minutes: a checkpoint also after so much time.
            every=dict(log=50, evaluate=5000, picture=5000, metrics=0, checkpoint=5000, checkpoint_minutes=0.0),
            metrics=dict(  # FID and the like, every.metrics
                networks="efficientnet_lite0",  # of features, separated by commas: scripts/get_weights.py
                weights="weights",  # folder of their weights
                samples=1000,  # or reconstructed validation pictures
                reference=10_000,  # training pictures to compare with, spread evenly; 0 = all
                steps=0,  # of sampling; 0 = sample.steps
                guidance=1.0,  # 1 = without
                batch=64,
                raw=False,  # also of the raw parameters, beside the averaged ones
                best="",  # e.g. FD-efficientnet_lite0: the model with the best number is kept in WORKDIR/best
            ),
            keep=3,  # the newest checkpoints
            keep_every=0,  # steps; checkpoints at its multiples are never deleted; 0 = off
            on_nonfinite="stop",  # a loss or gradient that is not finite: stop | skip (that step changes nothing)
            nonfinite_limit=10,  # skip: so many steps in a row are an error
            noise_seed=0,  # another number: other noise from here on, to get past such a step
            watchdog_minutes=0.0,  # no step, nor part of other work, for so long: shows stacks and ends; 0 = off
            optim=dict(
                name="adamw",
                learning_rate=1e-4,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.01,
                schedule="constant",  # constant | linear_warmup | cosine
                warmup_steps=0,
                warmup_fraction=0.0,  # first rate of the warm-up / learning_rate
                decay_steps=0,  # cosine: the step at which it ends; 0 = steps
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
        ch_mult=mult,  # f = 2 ** (len(ch_mult) - 1), times `patch` where a recipe has it
        num_res_blocks=2,
        attn_resolutions=(),
        attn_type="vanilla",  # vanilla | linear | none
        resolution=256,
        in_channels=3,
        out_channels=3,
        z_channels=3,
        embed_dim=3,
        dropout=0.0,
        use_quant_conv=True,  # the 1x1 convolution after the encoder; False needs embed_dim = z_channels
        use_post_quant_conv=True,  # the one before the decoder, likewise
        norm_groups=32,  # of channels, in each normalisation; divides all widths
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


def kl_f16() -> dict:
    return _first_stage("first_stage_kl_f16", "kl", 16, attn_resolutions=(16,), z_channels=16, embed_dim=16)


def kl_f32() -> dict:
    return _first_stage("first_stage_kl_f32", "kl", 32, attn_resolutions=(16, 8), z_channels=64, embed_dim=64)


def vq_f4_noattn() -> dict:
    return _first_stage("first_stage_vq_f4_noattn", "vq", 4, attn_type="none")


def vq_f8_n256() -> dict:
    return vq_f8() | dict(recipe="first_stage_vq_f8_n256", n_embed=256)


def vq_f16() -> dict:
    numbers = dict(attn_resolutions=(16,), z_channels=8, embed_dim=8, n_embed=16384)
    return _first_stage("first_stage_vq_f16", "vq", 16, **numbers)


def vq_f2() -> dict:
    return _first_stage("first_stage_table8:vq_f2", "vq", 2, z_channels=2, embed_dim=2, n_embed=2048)


def vq_f32(channels: int = 16) -> dict:
    """Never released. Table 8 has 16 channels, tables 13 and 14 use 32."""
    recipe = f"first_stage_table8:vq_f32{'' if channels == 16 else f'_c{channels}'}"
    numbers = dict(attn_resolutions=(16, 8), z_channels=channels, embed_dim=channels, n_embed=16384)
    return _first_stage(recipe, "vq", 32, **numbers)


def pixels() -> dict:
    """The identity: diffusion on pixels (LDM-1)."""
    return _first_stage("", "identity", 1)


def small_first_stage(recipe: str, kind: str, f: int, ch: int, z_channels: int, resolution: int, **numbers) -> dict:
    """A first stage for small images; takes any field of `_first_stage`."""
    return _first_stage(
        recipe, kind, f, ch=ch, z_channels=z_channels, embed_dim=z_channels, resolution=resolution, **numbers
    )


def autoencoder(first_stage: dict, image_size: int = 256) -> ConfigDict:
    """First-stage training: L1 + LPIPS + PatchGAN (paper, section 3.1 and appendix G)."""
    config = _base("first_stage", image_size)
    config.matmul_precision = "highest"  # its errors are seen in every image
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
            disc_weight=0.5,  # 0 = no discriminator
            disc_loss="hinge",  # hinge | vanilla
            disc_layers=3,
            disc_ndf=64,
        )
    )
    config.optim.update(name="adam", b1=0.5, b2=0.9, weight_decay=0.0)
    return config


def openimages(config: ConfigDict, crop_only: bool = False) -> None:
    """Data and optimiser of the released first stages: shorter side to 384, random crops of 256, no flips.

    Two batches of 12 a step and 24 x 4.5e-6, the original's ImageNet recipe (configs/autoencoder).
    `crop_only`: crops of the images as they are.
    """
    config.batch_size = 24
    config.optim.update(learning_rate=1.08e-4, accumulate=2)
    config.data.update(source="folder", crop="random", resize_to=384)
    if crop_only:
        config.data.update(resize="none", resize_to=0)


def channel_latents(config: ConfigDict) -> None:
    """Options beside config.latent_scale: another shift and scale for each channel of the latents."""
    config.latent_scale_kind = "scalar"  # scalar: one number, latent_scale | channels: a shift and a scale for each
    config.latent_channel_shift = ()  # channels: what is subtracted, numbers or one for all; () = measured
    config.latent_channel_scale = ()  # channels: what the rest is multiplied by; () = measured


def ldm(first_stage: dict, unet: dict, conditioner: dict | None = None, image_size: int = 256) -> ConfigDict:
    """Second stage: UNet on the first stage's latents (paper, section 3.2), with a condition (3.3).

    A diffusion transformer takes the UNet's place with config.network.kind="dit" (`transformer`)."""
    config = _base("ldm", image_size)
    config.first_stage = ConfigDict(first_stage)
    config.latent_scale = 0.0  # 0 = measured over latent_scale_batches batches and kept with the run
    config.latent_scale_batches = 16
    channel_latents(config)
    section = conditioner or none.section()
    config.conditioner = ConfigDict(
        dict(
            trainable=True,  # False: taken from the run `checkpoint`, and not changed
            checkpoint="",  # run directory of a diffusion model with the same conditioner
        )
        | section
    )
    # unet: config.unet | dit: config.dit | mean: sees the condition alone, to teach it. The others have no effect.
    config.network = ConfigDict(dict(kind="unet"))
    config.unet = ConfigDict(
        dict(
            model_channels=128,
            out_channels=first_stage["embed_dim"],
            num_res_blocks=2,
            channel_mult=(1, 2, 4),
            attention_downsamples=(),  # levels with attention, as downsampling factors of the latent
            num_heads=-1,  # heads everywhere, or
            num_head_channels=-1,  # the width of each; the other is -1
            use_spatial_transformer=needs_context(section),
            transformer_depth=1,
            legacy=True,
            use_scale_shift_norm=False,
            resblock_updown=False,
            norm_groups=32,  # of channels, in each normalisation; divides all widths
            dropout=0.0,
            remat=False,  # recompute activations in the backward pass: less memory, about 1/3 more time
        )
        | unet
    )
    config.dit = ConfigDict(
        dict(
            width=384,  # of a token; the defaults are DiT-S/2 of arXiv 2212.09748
            depth=12,  # blocks
            num_heads=6,
            patch_size=2,  # side of the latent's square that is a token
            # How the context gets in: adaln (one token, as of classes: with the time) | cross_attention (any number)
            context="adaln" if section["kind"] == "class" else "cross_attention",
            learn_sigma=False,  # further outputs of the released models, which nothing here trains or uses
            remat=False,  # recompute activations in the backward pass
        )
    )
    config.diffusion = ConfigDict(
        dict(
            kind="diffusion",  # diffusion | flow: the straight path, its velocity; needs prediction v, has no schedule
            schedule="scaled_linear",  # the original's "linear"
            timesteps=1000,
            start=0.0015,
            end=0.0195,
            prediction="eps",  # eps | x0 | v
            loss="l2",  # l1 | l2
            weighting="none",  # none | min_snr
            min_snr_gamma=5.0,  # min_snr: the weight is at most this
            elbo_weight=0.0,
            learn_logvar=False,
            zero_terminal_snr=False,  # the last step is pure noise; needs prediction v or x0
            offset_noise=0.0,  # noise that all pixels of a channel share; 0 = off
            t_distribution="uniform",  # uniform | logit_normal
            t_mean=0.0,  # logit_normal: mean of logit(t / timesteps)
            t_std=1.0,  # logit_normal: its standard deviation
        )
    )
    config.ema = _averages()
    config.sample = ConfigDict(dict(steps=50, eta=0.0, number=16, seed=0))
    return config


def transformer(config: ConfigDict, **numbers) -> None:
    """Makes the model of a recipe a diffusion transformer (arXiv 2212.09748) with these numbers in config.dit."""
    config.network.kind = "dit"
    config.dit.update(numbers)


def _averages() -> ConfigDict:
    return ConfigDict(
        dict(
            decay=0.9999,  # 0 = no average
            warmup=True,
            kind="exponential",  # exponential | power: of relative widths, which can be chosen afterwards
            sigma_rel=(0.05, 0.10),  # power: the widths that are kept; the first one makes pictures
            snapshot_every=0,  # power: steps; they are kept in WORKDIR/ema/ for convert.py --ema-sigma; 0 = never
            snapshot_dtype="float16",  # of these files: float16 | bfloat16 | float32
        )
    )


def classifier(first_stage: dict, network: dict, image_size: int = 256) -> ConfigDict:
    """Noise-aware classifier that guides an LDM: the encoder half of a UNet on noised latents, with logits."""
    config = _base("classifier", image_size)
    config.guides = ""  # run directory of the LDM that it is for: its first stage and latent scale are taken over
    config.first_stage = ConfigDict(first_stage)
    config.latent_scale = 0.0  # without `guides`: 0 = measured over latent_scale_batches batches
    config.latent_scale_batches = 16
    channel_latents(config)
    config.classifier = ConfigDict(
        dict(
            n_classes=1000,
            pool="attention",  # attention (latents of one size) | adaptive (any size)
            model_channels=128,
            num_res_blocks=2,
            channel_mult=(1, 2, 4),
            attention_downsamples=(),
            num_heads=-1,
            num_head_channels=-1,
            use_scale_shift_norm=False,
            resblock_updown=False,
            dropout=0.0,
            remat=False,
        )
        | network
    )
    config.diffusion = ConfigDict(dict(schedule="scaled_linear", timesteps=1000, start=0.0015, end=0.0195))
    config.ema = _averages()
    return config


def faces_unet() -> dict:
    """The 274.06M UNet of CelebA-HQ, FFHQ and LSUN-Bedrooms (table 12)."""
    return dict(model_channels=224, channel_mult=(1, 2, 3, 4), attention_downsamples=(2, 4, 8), num_head_channels=32)


def landscapes(image_size: int, batch_size: int, learning_rate: float) -> ConfigDict:
    """The semantic models: 182 classes, f = 4, attention in the middle alone, crops from 1.5 times their size."""
    unet = dict(model_channels=128, channel_mult=(1, 4, 8), attention_downsamples=(), num_heads=8)
    config = ldm(vq_f4(), unet, semantic.section(182), image_size=image_size)
    config.steps = 360_000
    config.batch_size = batch_size
    config.optim.learning_rate = learning_rate
    config.diffusion.update(end=0.0205, loss="l1")
    config.latent_scale = 1.0
    config.data.update(source="folder", crop="random", resize_to=image_size * 3 // 2)
    return config


def places_inpainting(first_stage: dict, model_channels: int = 128, channel_mult=(1, 4, 8)) -> ConfigDict:
    """The inpainting models of tables 6 and 15: attention in the middle alone."""
    unet = dict(model_channels=model_channels, channel_mult=channel_mult, attention_downsamples=(), num_heads=1)
    config = ldm(first_stage, unet, inpaint.section())
    config.steps = 360_000
    config.batch_size = 128
    config.optim.learning_rate = 1.28e-4
    config.latent_scale = 1.0
    config.data.update(source="tfds", name="places365_small", crop="random", resize="none", masks="train_256")
    return config


def imagenet(config: ConfigDict) -> None:
    """Data of the class-conditional models: TFDS imagenet2012, shorter side to 256, random crops, no flips."""
    config.data.update(source="tfds", name="imagenet2012", crop="random", interpolation="bilinear")


def split_variant(variant: str, options: tuple[str, ...]) -> tuple[str, str]:
    """ "f8" -> ("f8", ""), "f8_tiny" -> ("f8", "tiny"). Raises ConfigError with the options."""
    name = variant.removesuffix("_tiny")
    if name not in options:
        raise ConfigError(f"variant {variant!r}; there are, after a colon: {', '.join(options)}, each also with _tiny")
    return name, "tiny" if variant.endswith("_tiny") else ""


def finish(config: ConfigDict, variant: str) -> ConfigDict:
    """Applies the variant: "" = the recipe, "tiny" = the same structure shrunk to seconds on a CPU."""
    if variant not in ("", "tiny"):
        raise ConfigError(f"unknown variant {variant!r}; there are: (none), tiny")
    if variant == "tiny":
        _shrink(config)
    return config.lock()


def _shrink(config: ConfigDict) -> None:
    f = config.first_stage.get("patch", 1) * 2 ** (len(config.first_stage.ch_mult) - 1)
    network = config.get("unet") or config.get("classifier")
    levels = len(network.channel_mult) if network else 1
    size = min(max(16, 2 ** (levels - 1), 32 // f) * f, config.data.image_size)
    config.update(batch_size=8, steps=4)
    config.data.update(source="shapes", image_size=size, resize="shorter", resize_to=0, smallest_square=0.0, workers=0)
    config.data.update(validation_images=8, scenes=64)
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
        network.update(model_channels=32, num_res_blocks=1, remat=False)
    if config.task == "classifier":
        config.classifier.n_classes = 64
    if config.task == "ldm":
        config.sample.update(steps=4, number=4)
        config.dit.update(width=32, depth=1, num_heads=2, remat=False)
        for kind, section in config.conditioner.get("parts", {config.conditioner.kind: config.conditioner}).items():
            smaller = dict(
                dim=64 if kind == "vectors" else 32, depth=1, n_classes=9 if kind == "semantic" else 64, min_objects=1
            )
            section.update({k: v for k, v in smaller.items() if k in section})
