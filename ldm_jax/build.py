"""Configuration -> objects: the only place where a name becomes a class.

`config` is the ConfigDict of configs/*.py, or the same read back from a run's config.json.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import conditions
from ldm_jax.data import fields, pipeline, sources, transforms
from ldm_jax.diffusion.schedule import NoiseSchedule, make_schedule
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.ldm import LDM
from ldm_jax.models.autoencoder import AutoencoderKL, IdentityFirstStage, VQModel
from ldm_jax.models.classifier import EncoderUNet
from ldm_jax.models.discriminator import NLayerDiscriminator
from ldm_jax.models.lpips import LPIPS, load_lpips
from ldm_jax.models.unet import UNet
from ldm_jax.training import checkpoint, latent_cache, loop, optim, sharding, tasks
from ldm_jax.training.classifier import ClassifierTask, LatentClassifier, check_latents, check_options
from ldm_jax.training.state import TrainState

Tree = Any
# Fields of config.first_stage that are not the network's shape.
NOT_ARCHITECTURE = ("kind", "checkpoint", "recipe")
VQ_ONLY = ("n_embed", "beta", "legacy_beta")


class Missing(Exception):
    """Something that the run needs is not there; the message says what and how to get it."""


def _choose(what: str, value: str, options: dict):
    if value not in options:
        raise ValueError(f"{what}={value!r} is not one of {', '.join(options)}")
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
    return model(**_fields(section, skip), dtype=dtype(config))


def unet(config: ConfigDict) -> UNet:
    width = conditions.context_dim(config.conditioner) if config.unet.use_spatial_transformer else None
    return UNet(**_fields(config.unet), context_dim=width, dtype=dtype(config))


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
    network = EncoderUNet(out_channels=c.n_classes, **_fields(c, ("n_classes",)), dtype=dtype(config))
    return LatentClassifier(first_stage(config), network, schedule(config))


def latent_shape(config: ConfigDict, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """(h, w, c) of the latents of images of `size` (H, W), by default config.data.image_size."""
    s = config.first_stage
    f = 1 if s.kind == "identity" else 2 ** (len(s.ch_mult) - 1)
    height, width = size or (config.data.image_size,) * 2
    if height % f or width % f:
        raise ValueError(f"images of {height}x{width} pixels do not divide by the first stage's f={f}")
    return height // f, width // f, s.in_channels if s.kind == "identity" else s.embed_dim


def source(config: ConfigDict, train: bool) -> sources.Source:
    """The training or validation images that the condition can be learnt from. Missing: how to get them."""
    images = _images(config, train)
    if config.task == "classifier" and len(images.class_names) > config.classifier.n_classes:
        raise ValueError(f"the images have {len(images.class_names)} classes, more than config.classifier.n_classes="
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
    raise ValueError(f"config.data.source={d.source!r} is not one of shapes, folder, tfds")


def transform(config: ConfigDict, train: bool, kept_tokenizer: Path | None = None) -> pipeline.Transform:
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


def loaders(config: ConfigDict, workdir: str | Path, frozen: Tree | None = None) -> loop.Loaders:
    """With config.data.cache_latents and `frozen`, what the cache lacks is written first."""
    d = config.data
    if d.validation_images < 1:
        raise ValueError(f"config.data.validation_images={d.validation_images} must be at least 1")
    images, validation = source(config, train=True), source(config, train=False)
    print(f"training images: {images.describe()}")
    print(f"validation images: {validation.describe()}")
    tokenizer = Path(workdir) / "tokenizer"
    if config.task == "ldm":
        conditions.keep_tokenizer(config.conditioner, images, tokenizer)
    train_transform, eval_transform = (transform(config, train, tokenizer) for train in (True, False))
    hosts = dict(process_index=jax.process_index(), process_count=jax.process_count())
    if d.cache_latents and config.task != "ldm":
        raise ValueError(f"config.data.cache_latents is for diffusion models; a {config.task} trains on images")
    if d.cache_latents and frozen is not None:
        images, train_transform = latent_cache.from_cache(config, images, train_transform, first_stage(config), frozen)

    def train(start_step: int) -> Iterator:
        return pipeline.batches(
            images, train_transform, config.batch_size, seed=config.seed, start_step=start_step,
            workers=d.workers, **hosts,
        )  # fmt: skip

    def evaluate(limit: int) -> Iterator:
        return pipeline.eval_batches(
            validation, eval_transform, config.batch_size, limit=limit, **hosts
        )

    return loop.Loaders(train, lambda: evaluate(d.validation_images), lambda: evaluate(config.batch_size))


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
        raise ValueError("config.first_stage.kind='identity' has no parameters: there is nothing to train")
    learns_from = loss.disc_start if loss.disc_learns_from < 0 else loss.disc_learns_from
    if learns_from > loss.disc_start:
        raise ValueError(
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


def guide(run: str | Path, ldm_config: ConfigDict, ldm_frozen: Tree, ldm_run: str | Path) -> tuple:
    """(LatentClassifier, its averaged parameters, step) of the classifier's `run`, for the LDM of `ldm_run`.

    Raises ValueError unless it was trained on that LDM's latents.
    """
    config = guide_config(run, ldm_config, ldm_run)
    check_latents(frozen(config, run, kept_only=True), ldm_frozen, ldm_run)
    part = "ema" if config.ema.decay else "params"
    state = restore_parts(config, run, ("step", part))
    return classifier(config), jax.device_put(getattr(state, part)), int(state.step)


def guide_config(run: str | Path, ldm_config: ConfigDict, ldm_run: str | Path) -> ConfigDict:
    """Options of the classifier in `run`. Raises as `guide`, as far as options tell."""
    config = ConfigDict(checkpoint.load_config(run))
    if config.task != "classifier":
        raise Missing(f"a classifier: {run} holds a run of task {config.task!r}, not of a classifier")
    check_options(config, ldm_config, ldm_run)
    return config


def frozen(config: ConfigDict, workdir: str | Path, kept_only: bool = False) -> Tree:
    """What the task never changes: the run's own copy in `workdir`, else (unless `kept_only`) from where config says.

    Raises Missing when it is nowhere, ValueError when the first stage found has another architecture.
    """
    if config.task == "first_stage":
        return _lpips_params(config)
    model, kept = first_stage(config), Path(workdir) / "frozen"
    if kept.exists():
        return jax.device_put(checkpoint.restore_tree(kept, _frozen_shapes(config)))
    if kept_only:
        raise Missing(f"{kept}, the run's first stage and latent scale; without them its latents mean nothing")
    if config.task == "classifier" and config.guides:
        return _latents_of_run(config, config.guides)
    where = config.first_stage.checkpoint
    if config.first_stage.kind == "identity":
        variables = {}
    elif where == "random":
        image = jnp.zeros((1, config.data.image_size, config.data.image_size, config.data.channels))
        variables = jax.jit(model.init)(jax.random.key(config.seed), image)
    elif not where:
        name, colon, variant = config.first_stage.recipe.partition(":")
        how = _HOW_TO_GET_A_FIRST_STAGE.format(recipe=f"{name}.py{colon}{variant}")
        raise Missing(how if config.task == "ldm" else _HOW_TO_GET_LATENTS + how)
    else:
        variables = _first_stage_of_run(config, where)
    tree = {"first_stage": variables, "latent_scale": jnp.float32(1.0)}
    return tree if _conditioner_learns(config) else tree | {"conditioner": _conditioner_of_run(config)}


def _frozen_shapes(config: ConfigDict) -> Tree:
    """Shapes of what a task on latents never changes."""
    variables = first_stage_variables(first_stage(config), config.data.image_size, config.data.channels)
    shapes = {"first_stage": variables, "latent_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    if _conditioner_learns(config):
        return shapes
    params = jax.eval_shape(ldm(config).init, jax.random.key(0), shapes, batch_shapes(config, 1))
    return shapes | {"conditioner": params["conditioner"]}


def _conditioner_learns(config: ConfigDict) -> bool:
    return config.task != "ldm" or config.conditioner.get("trainable", True)


def _conditioner_of_run(config: ConfigDict) -> Tree:
    """Parameters of the conditioner in the run config.conditioner.checkpoint, averaged ones where there are any."""
    run = config.conditioner.checkpoint
    if not run:
        raise Missing(
            "the conditioner, which config.conditioner.trainable=False leaves as it is. Give a run that has it:\n"
            "    --config.conditioner.checkpoint=runs/ldm"
        )
    try:
        theirs = ConfigDict(checkpoint.load_config(run))
    except FileNotFoundError as error:
        raise Missing(f"the conditioner: {error}") from None
    skip = {"checkpoint", "trainable", "tokenizer", "drop_prob"}
    ours, found = ({k: v for k, v in checkpoint.leaves(json.loads(c.to_json())) if k.rpartition(".")[2] not in skip}
                   for c in (config.conditioner, theirs.get("conditioner", ConfigDict())))  # fmt: skip
    different = [f"    {k}: {found.get(k)!r} in {run}, {v!r} here" for k, v in ours.items() if found.get(k) != v]
    if different:
        raise ValueError(f"{run} has another conditioner than config.conditioner:\n" + "\n".join(different))
    if not _conditioner_learns(theirs):
        return frozen(theirs, run, kept_only=True)["conditioner"]
    shapes = abstract_run(theirs)[0].params["conditioner"]
    if not shapes:
        raise ValueError(f"config.conditioner.trainable=False: kind {config.conditioner.kind!r} has no parameters")
    step, part = _checkpoint(run, None), "ema" if theirs.ema.decay else "params"
    print(f"conditioner: {run}, step {step}, not trained further")
    return checkpoint.restore_numpy(run, step, {part: {"conditioner": shapes}})[part]["conditioner"]


_HOW_TO_GET_LATENTS = """the latents to classify. Give the run directory of the diffusion model to guide:
    --config.guides=runs/ldm
or, before there is one, take """
_HOW_TO_GET_A_FIRST_STAGE = """the first stage, whose latents the diffusion model learns. Train one:
    python train.py --config=configs/{recipe} --workdir=runs/first_stage
then give its run directory:
    --config.first_stage.checkpoint=runs/first_stage"""


def _latents_of_run(config: ConfigDict, run: str) -> Tree:
    """First stage and latent scale of the LDM in `run`, for the classifier that is to guide it."""
    try:
        theirs = ConfigDict(checkpoint.load_config(run))
    except FileNotFoundError as error:
        raise Missing(f"the diffusion model to guide: {error}") from None
    if theirs.task != "ldm":
        raise Missing(f"the diffusion model to guide: {run} holds a run of task {theirs.task!r}")
    check_options(config, theirs, run)
    found = frozen(theirs, run, kept_only=True)
    print(f"first stage and latent scale {float(found['latent_scale']):.5f}: {run}")
    return {name: found[name] for name in ("first_stage", "latent_scale")}


def _first_stage_of_run(config: ConfigDict, run: str) -> Tree:
    """Variables of the first stage trained in the directory `run`."""
    try:
        theirs = ConfigDict(checkpoint.load_config(run))
    except FileNotFoundError as error:
        raise Missing(f"the first stage: {error}") from None
    if theirs.task != "first_stage":
        raise Missing(f"the first stage: {run} holds a run of task {theirs.task!r}, not of a first stage")
    skip = ("checkpoint", "recipe", "dropout") + (() if config.first_stage.kind == "vq" else VQ_ONLY)
    ours, found = _fields(config.first_stage, skip), _fields(theirs.first_stage, skip)
    differences = [f"    {k}: {found.get(k)!r} in {run}, {v!r} here" for k, v in ours.items() if found.get(k) != v]
    if differences:
        raise ValueError(
            f"the first stage in {run} has another architecture than config.first_stage:\n"
            + "\n".join(differences)
            + "\nOverride them, for example --config.first_stage.ch=64, or use another recipe."
        )
    state = restore_parts(theirs, run, ("step", "params"))
    print(f"first stage: {run}, step {int(state.step)}")
    return {"params": state.params["autoencoder"]}


def abstract_run(config: ConfigDict) -> tuple[TrainState, Tree]:
    """(TrainState, frozen) of shapes, without the LPIPS weights."""
    frozen = {} if config.task == "first_stage" else _frozen_shapes(config)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return jax.eval_shape(task(config).init, key, frozen, batch_shapes(config, config.batch_size)), frozen


def restore(config: ConfigDict, workdir: str | Path, step: int | None = None) -> TrainState:
    """The newest TrainState of a run (or that of `step`) on one device, whatever devices wrote it.

    Raises Missing when the run has no checkpoint, FileNotFoundError when it has not that step.
    """
    step = _checkpoint(workdir, step)
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), abstract_run(config)[0]
    )
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract, step)
    checkpoints.close()
    return state


def restore_parts(
    config: ConfigDict, workdir: str | Path, parts: tuple[str, ...], step: int | None = None
) -> TrainState:
    """As `restore`, but only the fields `parts`, as numpy arrays; the others are () and are not read."""
    step, (abstract, _) = _checkpoint(workdir, step), abstract_run(config)
    empty = abstract.replace(**dict.fromkeys(vars(abstract), ()))
    wanted = {name: getattr(abstract, name) for name in parts}
    found = checkpoint.restore_numpy(workdir, step, wanted)
    return empty.replace(**found)


def _checkpoint(workdir: str | Path, step: int | None) -> int:
    """The step to restore. Raises as `restore` says."""
    steps = checkpoint.steps(workdir)
    if not steps:
        raise Missing(f"a checkpoint: {workdir} has none yet")
    if step not in (None, *steps):
        raise FileNotFoundError(f"no checkpoint of step {step} in {workdir}; there are: {steps}")
    return steps[-1] if step is None else step


def _lpips_params(config: ConfigDict) -> Tree:
    if not config.loss.perceptual_weight:
        return {}
    without = "or train without LPIPS: --config.loss.perceptual_weight=0"
    return {"lpips": lpips_params(config.loss.lpips_net, config.loss.lpips_weights, without)}


def lpips_params(net: str, folder: str | Path, otherwise: str) -> Tree:
    """Parameters of LPIPS(net) from the folder that make_lpips_weights.py fills. Missing says `otherwise`, too."""
    try:
        return load_lpips(Path(folder) / f"lpips_{net}.safetensors", net)
    except FileNotFoundError as error:
        raise Missing(f"LPIPS weights: {error}\n{otherwise}") from None


def mesh(config: ConfigDict) -> Mesh:
    """The device mesh; raises ValueError when devices, batch and accumulation do not fit together."""
    devices = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch_size, devices, config.optim.accumulate)
    return devices


# What a run's checkpoints depend on; of the last two only whether they are 0.
STATE_OPTIONS = ("task", "first_stage.", "conditioner.", "unet.", "classifier.", "diffusion.", "latent_scale",
                 "loss.disc_layers", "loss.disc_ndf", "optim.name")  # fmt: skip
NOT_STATE = ("drop_prob", "tokenizer", "conditioner.checkpoint")  # ends of names
# Options that older runs do not have in their config.json, and what they did.
ASSUMED = {"conditioner.trainable": True}
ON_OFF_OPTIONS = ("ema.decay", "optim.clip_norm")


def _check_same_run(config: ConfigDict, workdir: str | Path) -> None:
    """Raises ValueError when the run in `workdir` was begun with options that its checkpoints cannot follow."""
    wrong = [
        f"    {name}: {before!r} there, {now!r} here"
        for name, (before, now) in checkpoint.changes(workdir, config.to_dict()).items()
        if (
            name.startswith(STATE_OPTIONS)
            and not name.endswith(NOT_STATE)
            and now != (ASSUMED.get(name) if before is None else before)
        )
        or (name in ON_OFF_OPTIONS and bool(before) != bool(now))
    ]
    if wrong:
        raise ValueError(
            f"{workdir} holds a run with other options:\n" + "\n".join(wrong) + "\nUse another --workdir, or the "
            "options of that run (in its config.json)."
        )


def run(config: ConfigDict, workdir: str | Path) -> tuple[Any, loop.Loaders, Tree]:
    """(task, loaders, frozen) of a training run. Raises one Missing that lists everything that is not there."""
    _check_same_run(config, workdir)
    trained = task(config)  # before anything that takes time
    missing, made = [], {}
    kept_only = checkpoint.has_checkpoint(workdir)
    parts = {
        "frozen": lambda: frozen(config, workdir, kept_only),
        "loaders": lambda: loaders(config, workdir, made.get("frozen")),
    }
    for name, make in parts.items():
        try:
            made[name] = make()
        except (Missing, FileNotFoundError) as error:
            missing.append(f"* {error}")
    if missing:
        raise Missing("\n\n".join(missing))
    return trained, made["loaders"], made["frozen"]


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


def _fields(section: ConfigDict, skip: tuple[str, ...] = ()) -> dict:
    """A config section as keyword arguments; JSON turned tuples into lists, this turns them back."""
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in section.items() if k not in skip}
