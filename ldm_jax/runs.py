"""Run directories: what a run begins with, what it keeps, and how its parameters come back.

What is not there raises Missing, which says how to get it; what is there but does not fit this configuration raises
ConfigError with both values.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ldm_jax import build, conditions
from ldm_jax.data import batches
from ldm_jax.errors import ConfigError, Missing
from ldm_jax.models.lpips import load_lpips
from ldm_jax.training import checkpoint, latent_cache, loop
from ldm_jax.training.classifier import check_latents, check_options
from ldm_jax.training.state import TrainState

Tree = Any
# What a run's checkpoints depend on; of the last two only whether they are 0.
STATE_OPTIONS = ("task", "first_stage.", "conditioner.", "unet.", "classifier.", "diffusion.", "latent_scale",
                 "loss.disc_layers", "loss.disc_ndf", "optim.name")  # fmt: skip
NOT_STATE = ("drop_prob", "tokenizer", "conditioner.checkpoint")  # ends of names
ON_OFF_OPTIONS = ("ema.decay", "optim.clip_norm")
_HOW_TO_GET_LATENTS = """the latents to classify. Give the run directory of the diffusion model to guide:
    --config.guides=runs/ldm
or, before there is one, take """
_HOW_TO_GET_A_FIRST_STAGE = """the first stage, whose latents the diffusion model learns. Train one:
    python train.py --config=configs/{recipe} --workdir=runs/first_stage
then give its run directory:
    --config.first_stage.checkpoint=runs/first_stage"""


def training_run(config: ConfigDict, workdir: str | Path) -> tuple[Any, loop.Loaders, Tree]:
    """(task, loaders, frozen) of a training run. Raises one Missing that lists everything that is not there."""
    _check_same_run(config, workdir)
    trained = build.task(config)  # before anything that takes time
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


def _check_same_run(config: ConfigDict, workdir: str | Path) -> None:
    """Raises ConfigError when the run in `workdir` was begun with options that its checkpoints cannot follow."""
    wrong = [
        f"    {name}: {before!r} there, {now!r} here"
        for name, (before, now) in checkpoint.changes(workdir, config.to_dict()).items()
        if (name.startswith(STATE_OPTIONS) and not name.endswith(NOT_STATE))
        or (name in ON_OFF_OPTIONS and bool(before) != bool(now))
    ]
    if wrong:
        raise ConfigError(
            f"{workdir} holds a run with other options:\n" + "\n".join(wrong) + "\nUse another --workdir, or the "
            "options of that run (in its config.json)."
        )


def loaders(config: ConfigDict, workdir: str | Path, frozen: Tree | None = None) -> loop.Loaders:
    """With config.data.cache_latents and `frozen`, what the cache lacks is written first."""
    d = config.data
    if d.validation_images < 1:
        raise ConfigError(f"config.data.validation_images={d.validation_images} must be at least 1")
    images, validation = build.source(config, train=True), build.source(config, train=False)
    print(f"training images: {images.describe()}")
    print(f"validation images: {validation.describe()}")
    tokenizer = Path(workdir) / "tokenizer"
    if config.task == "ldm":
        conditions.keep_tokenizer(config.conditioner, images, tokenizer)
    train_transform, eval_transform = (build.transform(config, train, tokenizer) for train in (True, False))
    hosts = dict(process_index=jax.process_index(), process_count=jax.process_count())
    if d.cache_latents and config.task != "ldm":
        raise ConfigError(f"config.data.cache_latents is for diffusion models; a {config.task} trains on images")
    if d.cache_latents and frozen is not None:
        encoder = build.first_stage(config)
        images, train_transform = latent_cache.from_cache(config, images, train_transform, encoder, frozen)

    def train(start_step: int) -> Iterator:
        return batches.batches(
            images, train_transform, config.batch_size, seed=config.seed, start_step=start_step,
            workers=d.workers, **hosts,
        )  # fmt: skip

    def evaluate(limit: int) -> Iterator:
        return batches.eval_batches(
            validation, eval_transform, config.batch_size, limit=limit, **hosts
        )

    return loop.Loaders(train, lambda: evaluate(d.validation_images), lambda: evaluate(config.batch_size))


def frozen(config: ConfigDict, workdir: str | Path, kept_only: bool = False) -> Tree:
    """What the task never changes: the run's own copy in `workdir`, else (unless `kept_only`) from where config says.

    Raises Missing when it is nowhere, ConfigError when the first stage found has another architecture.
    """
    if config.task == "first_stage":
        return _lpips_params(config)
    model, kept = build.first_stage(config), Path(workdir) / "frozen"
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


def _config_of_run(run: str, what: str) -> ConfigDict:
    """The configuration of the run that `what` is taken from. Missing where `run` is none."""
    try:
        return ConfigDict(checkpoint.load_config(run))
    except Missing as error:
        raise Missing(f"{what}: {error}") from None


def _first_stage_of_run(config: ConfigDict, run: str) -> Tree:
    """Variables of the first stage trained in the directory `run`."""
    theirs = _config_of_run(run, "the first stage")
    if theirs.task != "first_stage":
        raise Missing(f"the first stage: {run} holds a run of task {theirs.task!r}, not of a first stage")
    skip = ("checkpoint", "recipe", "dropout") + (() if config.first_stage.kind == "vq" else build.VQ_ONLY)
    ours, found = build.keywords(config.first_stage, skip), build.keywords(theirs.first_stage, skip)
    differences = [f"    {k}: {found.get(k)!r} in {run}, {v!r} here" for k, v in ours.items() if found.get(k) != v]
    if differences:
        raise ConfigError(
            f"the first stage in {run} has another architecture than config.first_stage:\n"
            + "\n".join(differences)
            + "\nOverride them, for example --config.first_stage.ch=64, or use another recipe."
        )
    state = restore_parts(theirs, run, ("step", "params"))
    print(f"first stage: {run}, step {int(state.step)}")
    return {"params": state.params["autoencoder"]}


def _latents_of_run(config: ConfigDict, run: str) -> Tree:
    """First stage and latent scale of the LDM in `run`, for the classifier that is to guide it."""
    theirs = _config_of_run(run, "the diffusion model to guide")
    if theirs.task != "ldm":
        raise Missing(f"the diffusion model to guide: {run} holds a run of task {theirs.task!r}")
    check_options(config, theirs, run)
    found = frozen(theirs, run, kept_only=True)
    print(f"first stage and latent scale {float(found['latent_scale']):.5f}: {run}")
    return {name: found[name] for name in ("first_stage", "latent_scale")}


def _conditioner_of_run(config: ConfigDict) -> Tree:
    """Parameters of the conditioner in the run config.conditioner.checkpoint, averaged ones where there are any."""
    run = config.conditioner.checkpoint
    if not run:
        raise Missing(
            "the conditioner, which config.conditioner.trainable=False leaves as it is. Give a run that has it:\n"
            "    --config.conditioner.checkpoint=runs/ldm"
        )
    theirs = _config_of_run(run, "the conditioner")
    skip = {"checkpoint", "trainable", "tokenizer", "drop_prob"}
    ours, found = ({k: v for k, v in checkpoint.leaves(json.loads(c.to_json())) if k.rpartition(".")[2] not in skip}
                   for c in (config.conditioner, theirs.get("conditioner", ConfigDict())))  # fmt: skip
    different = [f"    {k}: {found.get(k)!r} in {run}, {v!r} here" for k, v in ours.items() if found.get(k) != v]
    if different:
        raise ConfigError(f"{run} has another conditioner than config.conditioner:\n" + "\n".join(different))
    if not _conditioner_learns(theirs):
        return frozen(theirs, run, kept_only=True)["conditioner"]
    shapes = abstract_run(theirs)[0].params["conditioner"]
    if not shapes:
        raise ConfigError(f"config.conditioner.trainable=False: kind {config.conditioner.kind!r} has no parameters")
    step, part = _checkpoint(run, None), "ema" if theirs.ema.decay else "params"
    print(f"conditioner: {run}, step {step}, not trained further")
    return checkpoint.restore_numpy(run, step, {part: {"conditioner": shapes}})[part]["conditioner"]


def _conditioner_learns(config: ConfigDict) -> bool:
    return config.task != "ldm" or config.conditioner.get("trainable", True)


def _frozen_shapes(config: ConfigDict) -> Tree:
    """Shapes of what a task on latents never changes."""
    variables = build.first_stage_variables(build.first_stage(config), config.data.image_size, config.data.channels)
    shapes = {"first_stage": variables, "latent_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    if _conditioner_learns(config):
        return shapes
    params = jax.eval_shape(build.ldm(config).init, jax.random.key(0), shapes, build.batch_shapes(config, 1))
    return shapes | {"conditioner": params["conditioner"]}


def abstract_run(config: ConfigDict) -> tuple[TrainState, Tree]:
    """(TrainState, frozen) of shapes, without the LPIPS weights."""
    frozen = {} if config.task == "first_stage" else _frozen_shapes(config)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return jax.eval_shape(build.task(config).init, key, frozen, build.batch_shapes(config, config.batch_size)), frozen


def restore(config: ConfigDict, workdir: str | Path, step: int | None = None) -> TrainState:
    """The newest TrainState of a run (or that of `step`) on one device, whatever devices wrote it.

    Raises Missing when the run has no checkpoint, or not that of `step`.
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


def weights(
    config: ConfigDict, workdir: str | Path, step: int | None = None, averaged: bool = True
) -> tuple[Tree, int]:
    """(the averaged parameters, or the raw ones where there are no averages or `averaged` is False; their step), on
    the device. Raises as `restore`."""
    part = "ema" if averaged and config.ema.decay else "params"
    state = restore_parts(config, workdir, ("step", part), step)
    return jax.device_put(getattr(state, part)), int(state.step)


def _checkpoint(workdir: str | Path, step: int | None) -> int:
    """The step to restore. Raises as `restore` says."""
    steps = checkpoint.steps(workdir)
    if not steps:
        raise Missing(f"a checkpoint: {workdir} has none yet")
    if step not in (None, *steps):
        raise Missing(f"no checkpoint of step {step} in {workdir}; there are: {steps}")
    return steps[-1] if step is None else step


def guide(run: str | Path, ldm_config: ConfigDict, ldm_frozen: Tree, ldm_run: str | Path) -> tuple:
    """(LatentClassifier, its averaged parameters, step) of the classifier's `run`, for the LDM of `ldm_run`.

    Raises ConfigError unless it was trained on that LDM's latents.
    """
    config = guide_config(run, ldm_config, ldm_run)
    check_latents(frozen(config, run, kept_only=True), ldm_frozen, ldm_run)
    return build.classifier(config), *weights(config, run)


def guide_config(run: str | Path, ldm_config: ConfigDict, ldm_run: str | Path) -> ConfigDict:
    """Options of the classifier in `run`. Raises as `guide`, as far as options tell."""
    config = ConfigDict(checkpoint.load_config(run))
    if config.task != "classifier":
        raise Missing(f"a classifier: {run} holds a run of task {config.task!r}, not of a classifier")
    check_options(config, ldm_config, ldm_run)
    return config
