"""Configuration -> objects (networks, tasks, optimisers, data): the only place where a name becomes a class.

`config` is the ConfigDict of configs/*.py, or the same read back from a run's config.json.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import conditions
from ldm_jax.data import batches, fields, sources, transforms
from ldm_jax.diffusion.schedule import NoiseSchedule, make_schedule
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.errors import ConfigError, Missing
from ldm_jax.ldm import LDM
from ldm_jax.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModel
from ldm_jax.models.classifier import EncoderUNet
from ldm_jax.models.discriminator import NLayerDiscriminator
from ldm_jax.models.lpips import LPIPS
from ldm_jax.models.unet import UNet
from ldm_jax.training import optim, sharding, tasks
from ldm_jax.training.classifier import ClassifierTask, LatentClassifier

Tree = Any
# Fields of config.first_stage that are not the network's shape.
NOT_ARCHITECTURE = ("kind", "checkpoint", "recipe")
VQ_ONLY = ("n_embed", "beta", "legacy_beta")


def _choose(what: str, value: str, options: dict):
    if value not in options:
        raise ConfigError(f"{what}={value!r} is not one of {', '.join(options)}")
    return options[value]


def dtype(config: ConfigDict) -> jnp.dtype:
    names = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    return _choose("config.dtype", config.dtype, names)


def first_stage(config: ConfigDict) -> nn.Module:
    section = config.first_stage
    model = _choose(
        "config.first_stage.kind",
        section.kind,
        {"kl": AutoencoderKL, "vq": VQModel, "identity": IdentityFirstStage},
    )
    if section.kind == "identity":
        return model()
    skip = NOT_ARCHITECTURE + (() if section.kind == "vq" else VQ_ONLY)
    return model(**keywords(section, skip), dtype=dtype(config))


def unet(config: ConfigDict) -> UNet:
    width = conditions.context_dim(config.conditioner) if config.unet.use_spatial_transformer else None
    return UNet(**keywords(config.unet), context_dim=width, dtype=dtype(config))


def conditioner(config: ConfigDict) -> nn.Module:
    return conditions.kind_of(config).network(config.conditioner, dtype(config))


def frame(config: ConfigDict, size: tuple[int, int] | None = None) -> conditions.Frame:
    """Sizes of an image of `size` (H, W), by default config.data.image_size."""
    size = size or (config.data.image_size,) * 2
    return conditions.Frame(size, latent_shape(config, size)[:2], 2 ** (len(config.unet.channel_mult) - 1))


def batch_shapes(config: ConfigDict, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a training batch, as the networks read them."""
    size, channels = config.data.image_size, config.data.channels
    shapes = {"image": ((size, size, channels), jnp.float32)}
    if config.task == "ldm":
        shapes |= conditions.kind_of(config).shapes(config.conditioner, frame(config))
    if config.task == "classifier":
        shapes["label"] = ((), jnp.int32)
    return {name: jax.ShapeDtypeStruct((batch_size, *shape), kind) for name, (shape, kind) in shapes.items()}


def schedule(config: ConfigDict) -> NoiseSchedule:
    d = config.diffusion
    return make_schedule(d.schedule, d.timesteps, d.start, d.end, prediction=d.get("prediction", "eps"))


def ldm(config: ConfigDict) -> LDM:
    d = config.diffusion
    return LDM(
        first_stage=first_stage(config),
        unet=unet(config),
        schedule=schedule(config),
        conditioner=conditioner(config),
        cond_drop_prob=config.conditioner.drop_prob,
        loss_type=d.loss,
        elbo_weight=d.elbo_weight,
        learn_logvar=d.learn_logvar,
        weighting=d.weighting,
    )


def classifier(config: ConfigDict) -> LatentClassifier:
    c = config.classifier
    network = EncoderUNet(out_channels=c.n_classes, **keywords(c, ("n_classes",)), dtype=dtype(config))
    return LatentClassifier(first_stage(config), network, schedule(config))


def latent_shape(config: ConfigDict, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """(h, w, c) of the latents of images of `size` (H, W), by default config.data.image_size."""
    s = config.first_stage
    f = 1 if s.kind == "identity" else 2 ** (len(s.ch_mult) - 1)
    height, width = size or (config.data.image_size,) * 2
    if height % f or width % f:
        raise ConfigError(f"images of {height}x{width} pixels do not divide by the first stage's f={f}")
    return height // f, width // f, s.in_channels if s.kind == "identity" else s.embed_dim


def source(config: ConfigDict, train: bool) -> sources.Source:
    """The training or validation images that the condition can be learnt from. Missing: how to get them."""
    images = _images(config, train)
    if config.task == "classifier" and len(images.class_names) > config.classifier.n_classes:
        raise ConfigError(f"the images have {len(images.class_names)} classes, more than config.classifier.n_classes="
                          f"{config.classifier.n_classes}")  # fmt: skip
    return images if config.task != "ldm" else conditions.kind_of(config).source(config.conditioner, images)


def _images(config: ConfigDict, train: bool) -> sources.Source:
    """The training or validation images. Raises Missing with the commands that bring them."""
    d = config.data
    split = "train" if train else "validation"
    if d.source == "shapes":
        return sources.ShapesSource(d.image_size, d.scenes, split, simple=d.simple_scenes)
    if d.source == "folder":
        if not d.path:
            raise Missing("the images: give their folder with --config.data.path=DIR")
        return sources.FolderSource(
            d.path, split=split, channels=d.channels, validation_fraction=d.validation_fraction
        )
    if d.source == "tfds":
        name = d.split if train else d.validation_split
        try:
            return sources.TfdsSource(d.name, name, d.path or None, d.channels, d.get("classes", ""))
        except FileNotFoundError as error:
            hint = "Or take a folder of images:\n    --config.data.source=folder --config.data.path=DIR"
            raise Missing(f"the images: {error}\n{hint}") from None
    raise ConfigError(f"config.data.source={d.source!r} is not one of shapes, folder, tfds")


def transform(config: ConfigDict, train: bool, kept_tokenizer: Path | None = None) -> batches.Transform:
    """Example -> the fields of a batch: the image, and what the conditioner reads."""
    images = image_transform(config, train)
    if config.task == "classifier":
        return fields.WithFields(images, (fields.Label(),))
    if config.task != "ldm":
        return images
    make = conditions.kind_of(config).fields
    made = make(config.conditioner, config.data, frame(config), train, kept_tokenizer)
    return fields.WithFields(images, made) if made else images


def image_transform(config: ConfigDict, train: bool) -> transforms.ImageTransform:
    """Validation images are cropped at the centre and not flipped."""
    d = config.data
    crop = d.crop if train or d.crop != "random" else "center"
    return transforms.ImageTransform(
        size=d.image_size,
        resize=d.resize,
        resize_to=d.resize_to or None,
        crop=crop,
        flip=d.flip and train,
        interpolation=d.interpolation,
        smallest_square=d.smallest_square or None,
    )


def task(config: ConfigDict):
    """The Task of config.task."""
    make = {"first_stage": _first_stage_task, "ldm": _ldm_task, "classifier": _classifier_task}
    return _choose("config.task", config.task, make)(config)


def _ldm_task(config: ConfigDict) -> tasks.LDMTask:
    model, s = ldm(config), config.sample
    samples = tasks.SampleSettings(
        latent_shape=latent_shape(config),
        timetable=make_timetable(model.schedule, s.steps),
        eta=s.eta,
        number=s.number,
        seed=s.seed,
    )
    rate = learning_rate(config)
    return tasks.LDMTask(
        ldm=model,
        optimizer=optimizer(config, rate),
        learning_rate=rate,
        samples=samples,
        averaging=tasks.Averaging(config.ema.decay, config.ema.warmup),
        accumulate=config.optim.accumulate,
        latent_scale=config.latent_scale,
        scale_batches=config.latent_scale_batches,
    )


def _classifier_task(config: ConfigDict) -> ClassifierTask:
    rate = learning_rate(config)
    return ClassifierTask(
        ldm=classifier(config),
        optimizer=optimizer(config, rate),
        learning_rate=rate,
        averaging=tasks.Averaging(config.ema.decay, config.ema.warmup),
        accumulate=config.optim.accumulate,
        latent_scale=config.latent_scale,
        scale_batches=config.latent_scale_batches,
        scale_is_given=bool(config.guides),
    )


def _first_stage_task(config: ConfigDict) -> tasks.FirstStageTask:
    loss, rate = config.loss, learning_rate(config)
    kind = config.first_stage.kind
    if kind == "identity":
        raise ConfigError("config.first_stage.kind='identity' has no parameters: there is nothing to train")
    learns_from = loss.disc_start if loss.disc_learns_from < 0 else loss.disc_learns_from
    if learns_from > loss.disc_start:
        raise ConfigError(
            f"config.loss.disc_learns_from={learns_from} is after disc_start={loss.disc_start}: the generator would "
            "follow a discriminator that never learnt; -1 means from disc_start on"
        )
    settings = tasks.FirstStageSettings(
        family=kind,
        n_embed=config.first_stage.n_embed if kind == "vq" else 0,
        perceptual_weight=loss.perceptual_weight,
        kl_weight=loss.kl_weight,
        codebook_weight=loss.codebook_weight,
        disc_start=loss.disc_start,
        disc_learns_from=learns_from,
        disc_weight=loss.disc_weight,
        disc_loss=loss.disc_loss,
    )
    return tasks.FirstStageTask(
        model=first_stage(config),
        discriminator=NLayerDiscriminator(loss.disc_ndf, loss.disc_layers, dtype=dtype(config)),
        lpips=LPIPS(loss.lpips_net, dtype(config)) if loss.perceptual_weight else None,
        settings=settings,
        optimizer=optimizer(config, rate),
        learning_rate=rate,
        accumulate=config.optim.accumulate,
    )


def first_stage_variables(model: nn.Module, image_size: int, channels: int) -> Tree:
    """Shapes of the first stage's variables (for the identity: none)."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image)


def mesh(config: ConfigDict) -> Mesh:
    """The device mesh; raises ConfigError when devices, batch and accumulation do not fit together."""
    devices = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch_size, devices, config.optim.accumulate)
    return devices


def learning_rate(config: ConfigDict):
    o = config.optim
    return optim.learning_rate(
        o.schedule, o.learning_rate, warmup_steps=o.warmup_steps, warmup_fraction=o.warmup_fraction,
        total_steps=o.decay_steps or config.steps, final_fraction=o.final_fraction,
    )  # fmt: skip


def optimizer(config: ConfigDict, rate):
    o = config.optim
    return optim.make_optimizer(
        o.name, rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, clip_norm=o.clip_norm
    )


def keywords(section: ConfigDict, skip: tuple[str, ...] = ()) -> dict:
    """A config section as keyword arguments; JSON turned tuples into lists, this turns them back."""
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in section.items() if k not in skip}
