"""What a training run begins with: its task, its batches, and what it never changes.

What is not there raises Missing, which says how to get it; what is there but does not fit this recipe raises
ConfigError with both values.
"""

import hashlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import build, checkpoint, conditions, files, hosts, rundir
from ldm_jax.conditions import class_label
from ldm_jax.conditions.text import keep_tokenizer
from ldm_jax.data import batches, fields, sources, transforms, workers
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.errors import ConfigError, Missing
from ldm_jax.ldm import latents_of
from ldm_jax.models.discriminator import NLayerDiscriminator
from ldm_jax.models.lpips import LPIPS
from ldm_jax.training import latent_cache, loop, optim, resume, sharding, tasks
from ldm_jax.training.classifier_task import ClassifierTask
from ldm_jax.training.state import TrainState

Tree = Any
_HOW_TO_GET_LATENTS = """the latents to classify. Give the run directory of the diffusion model to guide:
    --config.guides=runs/ldm
or, before there is one, take """
_HOW_TO_GET_A_FIRST_STAGE = """the first stage, whose latents the diffusion model learns. Train one:
    python train.py --config=configs/{recipe} --workdir=runs/first_stage
then give its run directory:
    --config.first_stage.checkpoint=runs/first_stage"""


def training_run(
    config: ConfigDict, workdir: str | Path, accept_changes: bool = False
) -> tuple[tasks.Task, loop.Loaders, Tree]:
    """(task, loaders, frozen) of a training run. Raises one Missing that lists everything that is not there.

    ConfigError when the run in `workdir` was begun with other options: with those that its checkpoints cannot follow,
    and without `accept_changes` also with those that change what the model learns from then on.
    """
    hosts.check_equal(_facts(config))
    kept_only = checkpoint.has_checkpoint(workdir)
    if kept_only:
        resume.check_same_run(config, workdir, accept_changes)
    elif config.task != "first_stage":
        resume.check_frozen(config, workdir, _frozen_of_source)
    trained = task(config)  # before anything that takes time
    missing, made = [], {}
    try:
        made["frozen"] = frozen(config, workdir, kept_only)
    except Missing as error:
        missing.append(error)
    try:
        made["loaders"] = loaders(config, workdir, made.get("frozen"))
    except (Missing, FileNotFoundError) as error:
        missing.append(error)
    hosts.check_equal({"what is missing": "\n".join(map(str, missing))})
    if missing:
        raise Missing("\n\n".join(f"* {error}" for error in missing))
    return trained, made["loaders"], made["frozen"]


# Options that may differ between hosts: where things are on each, and how it reads them.
_OF_A_HOST = ("data.path", "data.workers", "data.cache_latents")


def _facts(config: ConfigDict) -> dict[str, Any]:
    """What must be equal on all hosts: versions, this program's source, and the configuration."""
    source_files = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in source_files)).hexdigest()[:16]
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: metadata.version(name) for name in packages}
    options = {f"config.{name}": value for name, value in rundir.leaves_of(config).items() if name not in _OF_A_HOST}
    return {"python": platform.python_version(), "source code": code} | versions | options


def source(config: ConfigDict, train: bool) -> sources.Source:
    """The training or validation images that the condition can be learnt from. Missing: how to get them."""
    images = _images(config, train)
    if config.task == "classifier" and len(images.class_names) > config.classifier.n_classes:
        raise ConfigError(
            f"the images have {len(images.class_names)} classes, more than config.classifier.n_classes="
            f"{config.classifier.n_classes}"
        )
    return conditions.condition_of(config).source(images) if config.task == "ldm" else images


def _images(config: ConfigDict, train: bool) -> sources.Source:
    """The training or validation images. Raises Missing with the commands that bring them."""
    d = config.data
    split = "train" if train else "validation"
    if d.source == "shapes":
        return sources.ShapesSource(d.image_size, d.scenes, split, simple=d.simple_scenes)
    if d.source == "folder":
        if not d.path:
            raise Missing("the images: give their folder with --config.data.path=DIR")
        return sources.FolderSource(d.path, split=split, channels=d.channels, validation_fraction=d.validation_fraction)
    if d.source == "tfds":
        name = d.split if train else d.validation_split
        try:
            return sources.TfdsSource(d.name, name, d.path or None, d.channels, d.get("classes", ""))
        except FileNotFoundError as error:
            hint = "Or take a folder of images:\n    --config.data.source=folder --config.data.path=DIR"
            raise Missing(f"the images: {error}\n{hint}") from None
    raise ConfigError(f"config.data.source={d.source!r} is not one of shapes, folder, tfds")


def transform(config: ConfigDict, train: bool, tokenizer: Path | None = None) -> batches.Transform:
    """Example -> the fields of a batch: the image, and what the condition reads. tokenizer: the run's own folder."""
    images = image_transform(config, train)
    if config.task == "classifier":
        return fields.WithFields(images, (class_label.Label(config.classifier.n_classes),))
    if config.task != "ldm":
        return images
    made = conditions.condition_of(config).fields(config.data, build.frame(config), train, tokenizer)
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
        raise ConfigError(f"config.data.validation_images={d.validation_images} must be at least 1")
    images, validation = source(config, train=True), source(config, train=False)
    hosts.check_equal({"training images": images.alike(), "validation images": validation.alike()})
    cores = workers.cores(hosts.on_this_machine())  # here, because all hosts must come to it
    print(f"training images: {images.describe()}")
    print(f"validation images: {validation.describe()}")
    tokenizer = rundir.tokenizer_of(workdir)
    if config.task == "ldm":
        _keep_tokenizer(config, images, tokenizer)
    train_transform, eval_transform = (transform(config, train, tokenizer) for train in (True, False))
    own = sharding.own_rows(mesh(config), config.batch_size)
    of_host = dict(process_index=jax.process_index(), process_count=jax.process_count(), own=own)
    of_host["cores"] = cores
    if d.cache_latents and config.task != "ldm":
        raise ConfigError(f"config.data.cache_latents is for diffusion models; a {config.task} trains on images")
    if d.cache_latents and frozen is not None:
        encoder = build.first_stage(config)
        images, train_transform = latent_cache.from_cache(config, images, train_transform, encoder, frozen, cores)

    def train(start_step: int) -> Iterator:
        return batches.batches(
            images, train_transform, config.batch_size, seed=config.seed, start_step=start_step,
            workers=d.workers, **of_host,
        )  # fmt: skip

    def evaluate(limit: int) -> Iterator:
        return batches.eval_batches(validation, eval_transform, config.batch_size, limit=limit, **of_host)

    count = -(-min(d.validation_images, len(validation)) // config.batch_size)
    shapes = build.batch_shapes(config, config.batch_size)
    return loop.Loaders(
        train, lambda: evaluate(d.validation_images), lambda: evaluate(config.batch_size), count, shapes
    )  # fmt: skip


def _keep_tokenizer(config: ConfigDict, images: sources.Source, folder: Path) -> None:
    """The run's own tokenizer, made by one host; the others wait for it."""
    text = conditions.condition_of(config).parts().get("text")
    if jax.process_index() == 0:
        keep_tokenizer(config.conditioner, text and text.section, images, folder, config.init_from)
    multihost_utils.sync_global_devices("the tokenizer is kept")


def frozen(config: ConfigDict, workdir: str | Path, kept_only: bool = False) -> Tree:
    """What the task never changes: the run's own copy in `workdir`, else (unless `kept_only`) from where config says.

    Raises Missing when it is in neither place, ConfigError when the first stage there has another architecture.
    """
    if config.task == "first_stage":
        return _lpips_params(config)
    if kept_only or checkpoint.has_tree(files.at(workdir) / "frozen"):
        return rundir.kept_frozen(config, workdir)
    return _frozen_of_source(config)


def _frozen_of_source(config: ConfigDict) -> Tree:
    """First stage, latent scale and kept conditioner from where config says. Errors as `frozen`."""
    if config.task == "classifier" and config.guides:
        return _latents_of_run(config, config.guides)
    if rundir.begins_with_latents(config):
        return _latents_to_begin_with(config)
    where, model = config.first_stage.checkpoint, build.first_stage(config)
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
    return tree if rundir.conditioner_learns(config) else tree | {"conditioner": _conditioner_of_run(config)}


def _lpips_params(config: ConfigDict) -> Tree:
    if not config.loss.perceptual_weight:
        return {}
    without = "or train without LPIPS: --config.loss.perceptual_weight=0"
    return {"lpips": rundir.lpips_params(config.loss.lpips_net, config.loss.lpips_weights, without)}


def _first_stage_of_run(config: ConfigDict, run: str) -> Tree:
    """Variables of the first stage trained in the directory `run`."""
    theirs = rundir.config_of(run, "the first stage")
    if theirs.task != "first_stage":
        raise Missing(f"the first stage: {run} holds a run of task {theirs.task!r}, not of a first stage")
    differences = rundir.first_stage_differences(config, theirs)
    if differences:
        raise ConfigError(
            f"the first stage in {run} has another architecture than config.first_stage:\n"
            + "\n".join(f"    {line}" for line in differences)
            + "\nOverride them, for example --config.first_stage.ch=64, or use another recipe."
        )
    _, found, step = rundir.model_of(theirs, run)
    print(f"first stage: {run}" + (f", step {step}" if step is not None else ""))
    return found["first_stage"]


def _latents_of_run(config: ConfigDict, run: str) -> Tree:
    """First stage and latent scale of the diffusion model in `run`, for the classifier that is to guide it."""
    theirs = rundir.config_of(run, "the diffusion model to guide")
    if theirs.task != "ldm":
        raise Missing(f"the diffusion model to guide: {run} holds a run of task {theirs.task!r}")
    rundir.check_same_latents(config, theirs, run)
    found = _frozen_of_run(theirs, run)
    print(f"first stage and latent scale {rundir.describe_scale(found)}: {run}")
    return latents_of(found)


def _frozen_of_run(config: ConfigDict, run: str) -> Tree:
    """What the model in `run`, a run directory or an exported folder, never changed."""
    return rundir.model_of(config, run)[1] if rundir.is_exported(run) else rundir.kept_frozen(config, run)


def _latents_to_begin_with(config: ConfigDict) -> Tree:
    """First stage, latent scale and kept conditioner of the run in config.init_from."""
    run = config.init_from
    theirs = rundir.config_of(run, "the run to begin from")
    differences = rundir.latent_differences(config, theirs)
    if differences or theirs.task == "first_stage":
        lines = "\n".join(f"    {line}" for line in differences)
        raise ConfigError(
            f"config.init_from={run} has no latents for this model:\n{lines}\nChange what differs, or give this "
            "model's first stage with --config.first_stage.checkpoint=RUN"
        )
    _, found, _ = rundir.model_of(theirs, run)
    print(f"first stage and latent scale {rundir.describe_scale(found)}: {run}")
    tree = latents_of(found)
    return tree if rundir.conditioner_learns(config) else tree | {"conditioner": _conditioner_of_run(config)}


def _conditioner_of_run(config: ConfigDict) -> Tree:
    """Parameters of the conditioner in the run config.conditioner.checkpoint, averaged ones where there are any."""
    run = config.conditioner.checkpoint
    if not run:
        raise Missing(
            "the conditioner, which config.conditioner.trainable=False leaves as it is. Give a run that has it:\n"
            "    --config.conditioner.checkpoint=runs/ldm"
        )
    theirs = rundir.config_of(run, "the conditioner")
    skip = {"checkpoint", "trainable", "tokenizer", "drop_prob", "drop_each", "embedding_std"}
    ours, found = ({k: v for k, v in rundir.leaves_of(c).items() if k.rpartition(".")[2] not in skip}
                   for c in (config.conditioner, theirs.get("conditioner", ConfigDict())))  # fmt: skip
    different = [f"    {k}: {found.get(k)!r} in {run}, {v!r} here" for k, v in ours.items() if found.get(k) != v]
    if different:
        raise ConfigError(f"{run} has another conditioner than config.conditioner:\n" + "\n".join(different))
    if not rundir.conditioner_learns(theirs):
        return _frozen_of_run(theirs, run)["conditioner"]
    shapes = rundir.params_shapes(theirs)["conditioner"]
    if not shapes:
        raise ConfigError(f"config.conditioner.trainable=False: kind {config.conditioner.kind!r} has no parameters")
    if rundir.is_exported(run):
        print(f"conditioner: {run}, not trained further")
        return rundir.model_of(theirs, run)[0]["conditioner"]
    step, part = rundir.step_of(run), "ema" if theirs.ema.decay else "params"
    print(f"conditioner: {run}, step {step}, not trained further")
    return rundir.restore(run, {part: {"conditioner": shapes}}, step)[part]["conditioner"]


@build.once_a_config
def abstract_run(config: ConfigDict) -> tuple[TrainState, Tree]:
    """(TrainState, frozen) of shapes, without the LPIPS weights."""
    frozen = {} if config.task == "first_stage" else rundir.frozen_shapes(config)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return jax.eval_shape(task(config).init, key, frozen, build.batch_shapes(config, config.batch_size)), frozen


def restore_parts(config: ConfigDict, run: str | Path, parts: tuple[str, ...], step: int | None = None) -> TrainState:
    """The fields `parts` of a run's TrainState as numpy arrays; the others are () and are not read. Missing as
    rundir.step_of."""
    abstract, _ = abstract_run(config)
    wanted = {name: getattr(abstract, name) for name in parts}
    return abstract.replace(**dict.fromkeys(vars(abstract), ()) | rundir.restore(run, wanted, step))


def task(config: ConfigDict) -> tasks.Task:
    """The Task of config.task."""
    make = {"first_stage": _first_stage_task, "ldm": _ldm_task, "classifier": _classifier_task}
    return build.choose("config.task", config.task, make)(config)


def _ldm_task(config: ConfigDict) -> tasks.LDMTask:
    model, s = build.ldm(config), config.sample
    samples = tasks.SampleSettings(
        latent_shape=build.latent_shape(config),
        timetable=make_timetable(model.schedule, s.steps, model.schedule.spacing or "even"),
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
        averaging=averaging(config),
        accumulate=config.optim.accumulate,
        latent_scale=config.latent_scale,
        scale_batches=config.latent_scale_batches,
        by_channel=build.has_channel_scale(config),
        channels=build.channel_scale(config),
        scale_is_given=rundir.begins_with_latents(config),
    )


def _classifier_task(config: ConfigDict) -> ClassifierTask:
    rate = learning_rate(config)
    return ClassifierTask(
        ldm=build.classifier(config),
        optimizer=optimizer(config, rate),
        learning_rate=rate,
        averaging=averaging(config),
        accumulate=config.optim.accumulate,
        latent_scale=config.latent_scale,
        scale_batches=config.latent_scale_batches,
        by_channel=build.has_channel_scale(config),
        channels=build.channel_scale(config),
        scale_is_given=bool(config.guides) or rundir.begins_with_latents(config),
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
        model=build.first_stage(config),
        discriminator=NLayerDiscriminator(loss.disc_ndf, loss.disc_layers, dtype=build.dtype(config)),
        lpips=LPIPS(loss.lpips_net, build.dtype(config)) if loss.perceptual_weight else None,
        settings=settings,
        optimizer=optimizer(config, rate),
        learning_rate=rate,
        accumulate=config.optim.accumulate,
    )


def averaging(config: ConfigDict) -> tasks.Averaging:
    """The moving averages of config.ema. ConfigError for numbers that make none."""
    e = config.ema
    if not build.choose("config.ema.kind", e.get("kind", "exponential"), {"exponential": False, "power": True}):
        return tasks.Averaging(e.decay, e.warmup)
    if not e.decay or not e.sigma_rel:
        raise ConfigError(
            f"config.ema.kind='power' needs a width or more in config.ema.sigma_rel={tuple(e.sigma_rel)}, and "
            f"config.ema.decay={e.decay} not to be 0, which means no average"
        )
    if len(set(e.sigma_rel)) < len(e.sigma_rel):
        raise ConfigError(f"config.ema.sigma_rel={tuple(e.sigma_rel)} has a width twice: give different ones")
    for sigma_rel in e.sigma_rel:
        optim.power_of(sigma_rel)  # says what is wrong
    return tasks.Averaging(e.decay, e.warmup, tuple(e.sigma_rel))


def mesh(config: ConfigDict) -> Mesh:
    """The device mesh; raises ValueError when devices, batch and accumulation do not fit together."""
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
