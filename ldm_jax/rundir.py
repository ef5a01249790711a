"""Run directories: what is in them, and how a model comes back from one.

    config.json       the run's recipe             frozen/      first stage and latent scale (all but first stages)
    checkpoints/N/    the training state at step N  tokenizer/  of a text model
    model.safetensors instead of the last three folders: a model exported by `Pipeline.save`

The trained models of the package are read by name (shipped.py) wherever a run directory is read.

What is not there raises Missing, which says how to get it; what does not fit raises ConfigError with both values; what
is not as it was written raises Damaged, which names the file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import build, checkpoint, conditions, config_file, manifest, shipped, tree
from ldm_jax.convert.safetensors_file import read_safetensors
from ldm_jax.errors import ConfigError, Damaged, Missing, UsageError
from ldm_jax.files import at, copy_folder, exists, is_folder, save_arrays
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.ldm import LDM, SCALING, latents_of
from ldm_jax.models.lpips import load_lpips

Tree = Any
WEIGHTS = "model.safetensors"
# Options that the noised latents of a diffusion model and of its classifier have in common.
SCHEDULE = ("schedule", "timesteps", "start", "end")
SCHEDULE_DEFAULTS = {"kind": "diffusion", "zero_terminal_snr": False}  # not of classifiers
_ONE = "A classifier of that model's latents is trained with --config.guides=RUN, the run directory of the model."


def config_of(run: str | Path, what: str = "the model") -> ConfigDict:
    """The recipe of a run. Missing where `run` is no run directory; `what`: what it is for, in the message."""
    try:
        return ConfigDict(config_file.load(shipped.find(run)))
    except Missing as error:
        raise Missing(f"{what}: {error}{shipped.hint(run)}") from None


def tokenizer_of(run: str | Path) -> Path:
    """The folder of the run's tokenizer, which may not exist."""
    return shipped.find(run) / "tokenizer"


def is_exported(run: str | Path) -> bool:
    return exists(shipped.find(run) / WEIGHTS)


def frozen_shapes(config: ConfigDict) -> Tree:
    """Shapes of what a task on latents never changes."""
    variables = build.first_stage_variables(build.first_stage(config), config.data.image_size, config.data.channels)
    shapes = {"first_stage": variables, "latent_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    if config.task != "first_stage" and build.has_channel_scale(config):
        each = jax.ShapeDtypeStruct(build.latent_shape(config)[-1:], jnp.float32)
        shapes |= {"latent_scale": each, "latent_shift": each}
    if conditioner_learns(config):
        return shapes
    params = jax.eval_shape(build.ldm(config).init, jax.random.key(0), shapes, build.batch_shapes(config, 1))
    return shapes | {"conditioner": params["conditioner"]}


def conditioner_learns(config: ConfigDict) -> bool:
    """Whether the condition's network is trained with the UNet. False: it is another run's and does not change."""
    return config.task != "ldm" or config.conditioner.get("trainable", True)


@build.once_a_config
def params_shapes(config: ConfigDict) -> Tree:
    """Shapes of the parameters that make images: of a diffusion model, a classifier, or {"autoencoder"}."""
    if config.task == "first_stage":
        variables = build.first_stage_variables(build.first_stage(config), config.data.image_size, config.data.channels)
        return {"autoencoder": variables["params"]}
    model = build.ldm(config) if config.task == "ldm" else build.classifier(config)
    return jax.eval_shape(model.init, jax.random.key(0), frozen_shapes(config), build.batch_shapes(config, 1))


def kept_frozen(config: ConfigDict, run: str | Path) -> Tree:
    """The run's own first stage and latent scale, as numpy arrays. Missing when they are not there."""
    kept = at(run) / "frozen"
    if not checkpoint.has_tree(kept):
        raise Missing(f"{kept}, the run's first stage and latent scale; without them its latents mean nothing")
    return checkpoint.restore_tree(kept, frozen_shapes(config))


def begins_with_latents(config: ConfigDict) -> bool:
    """Whether first stage and latent scale are those of the run in config.init_from."""
    return bool(config.task != "first_stage" and config.init_from and not config.first_stage.checkpoint)


# Options that decide what frozen/ is, besides first_stage; those of _MEASURED only where the latent scale is measured.
_FROZEN_OPTIONS = ("guides", "init_from", "latent_scale", "conditioner.trainable", "conditioner.checkpoint")
_MEASURED = ("data.source", "data.path", "data.name", "data.split", "data.image_size", "latent_scale_batches")


def frozen_options(config: ConfigDict) -> dict[str, Any]:
    """{dotted name: value} of the options that decide what frozen/ is, as JSON has them."""
    if build.has_channel_scale(config):
        names, numbers = (*_FROZEN_OPTIONS, *config_file.YOUNGER_LATENTS), len(config.latent_channel_scale)
    else:
        names, numbers = _FROZEN_OPTIONS, config.latent_scale
    given = numbers or config.get("guides") or begins_with_latents(config)
    names += () if given else _MEASURED
    if config.first_stage.checkpoint == "random":
        names += ("seed",)
    every = leaves_of(config)
    return {n: value for n, value in every.items() if n in names or n.startswith("first_stage.")}


def frozen_made_from(config: ConfigDict, frozen: Tree) -> dict:
    """What is kept with frozen/: its options, and a digest of the parameters that came from another run."""
    return {"options": frozen_options(config), "digests": digests(config, frozen)}


def digests(config: ConfigDict, frozen: Tree) -> dict[str, str]:
    """A digest of each part of `frozen` that came from elsewhere; of the latent scale, if it came with the first stage
    from the model that config.guides or config.init_from names."""
    with_scale = config.get("guides") or begins_with_latents(config)
    given = {"first_stage", "conditioner"} | (set(SCALING) if with_scale else set())
    return {name: tree.digest(frozen[name]) for name in sorted(given & frozen.keys())}


def step_of(run: str | Path, step: int | None = None) -> int:
    """The newest checkpoint's step, or `step`. Missing when the run has none, or not that one."""
    steps = checkpoint.steps(run)
    if not steps:
        raise Missing(f"a checkpoint: {run} has none yet")
    if step not in (None, *steps):
        raise Missing(f"no checkpoint of step {step} in {run}; there are: {steps}")
    return steps[-1] if step is None else step


def restore(run: str | Path, parts: dict[str, Tree], step: int | None = None) -> dict[str, Tree]:
    """{"params" | "ema" | "step" | ...: arrays} of a checkpoint, as numpy, for the shapes in `parts`; no other part is
    read. Missing as `step_of`."""
    return checkpoint.restore_numpy(run, step_of(run, step), parts)


def weights(config: ConfigDict, run: str | Path, step: int | None = None, averaged: bool = True) -> tuple[Tree, int]:
    """(parameters, their step), as numpy: the averaged ones, or the raw ones where there are no averages or `averaged`
    is False."""
    part = "ema" if averaged and config.get("ema", {}).get("decay", 0.0) else "params"
    step = step_of(run, step)
    return restore(run, {part: params_shapes(config)}, step)[part], step


def model_of(
    config: ConfigDict, run: str | Path, step: int | None = None, averaged: bool = True
) -> tuple[Tree, Tree, int | None]:
    """(params, frozen, step) of a run or of an exported folder, as numpy. For a first stage `params` is {} and `frozen`
    holds it, with a latent scale of 1."""
    if is_exported(run):
        return *_read_exported(config, shipped.find(run)), None
    params, step = weights(config, run, step, averaged)
    if config.task == "first_stage":
        return {}, {"first_stage": {"params": params["autoencoder"]}, "latent_scale": np.float32(1.0)}, step
    return params, kept_frozen(config, run), step


def write_exported(
    folder: Path, config: ConfigDict, params: Tree, frozen: Tree, dtype: str, tokenizer: Path | None = None
) -> None:
    """config.json, model.safetensors (floating-point numbers as `dtype`, except the latent scale) and its manifest, and
    a copy of the folder `tokenizer`, if there is one. Damaged if that is not whole. Where a machine keeps its cached
    latents is left out: nothing trains on from here."""
    tokenizer = tokenizer if tokenizer is not None and is_folder(tokenizer) else None
    if tokenizer is not None and (wrong := manifest.problems(tokenizer)):
        raise manifest.damaged(tokenizer, wrong)
    kind = jnp.dtype(dtype)
    named = tree.flatten({"params": params, "frozen": frozen})
    arrays = {}
    for name, leaf in named.items():
        array = np.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.floating) and not name.endswith(SCALING):
            array = array.astype(kind)
        arrays[name] = np.asarray(array, order="C")
    folder.mkdir(parents=True, exist_ok=True)
    config = config.copy_and_resolve_references()
    config.data.cache_latents = ""
    config_file.save(folder, config.to_dict())
    (folder / manifest.NAME).unlink(missing_ok=True)
    save_arrays(folder / WEIGHTS, arrays, {"format": "ldm_jax"})
    manifest.write(folder, only=[WEIGHTS])
    if tokenizer is not None:
        copy_folder(tokenizer, tokenizer_of(folder))


def _read_exported(config: ConfigDict, folder: Path) -> tuple[Tree, Tree]:
    wrong = manifest.problems(folder)
    if wrong:
        raise Damaged(
            f"{folder / WEIGHTS} is damaged: {'; '.join(wrong)}. Copy it again. If it was changed on purpose, remove "
            f"{folder / manifest.NAME}"
        )
    named, _ = read_safetensors(folder / WEIGHTS)
    first_stage = config.task == "first_stage"
    shapes = {
        "params": {} if first_stage else params_shapes(config),
        "frozen": frozen_shapes(config),
    }
    try:
        difference = tree.compare(tree.unflatten(named), shapes)
    except ValueError as error:
        raise ConfigError(f"{folder / WEIGHTS} is not a model of this program: {error}") from None
    if difference:
        raise ConfigError(f"{folder / WEIGHTS} does not hold the model of its config.json:\n{difference}")
    leaves = [named[name].astype(s.dtype) for name, s in tree.flatten(shapes).items()]
    found = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return found["params"], found["frozen"]


def audit(run: str | Path) -> Iterator[tuple[str, str, bool]]:
    """(name, what was found, whether it is bad) of each part of a run directory: the configuration, every checkpoint,
    frozen/, the tokenizer and exported weights. Their files are compared with the manifests."""
    run = shipped.find(run)
    try:
        config, wrong = config_of(run), ""
    except UsageError as error:
        config, wrong = None, str(error)
    yield "config.json", wrong or "ok", bool(wrong)
    if is_folder(tokenizer := tokenizer_of(run)):
        yield tokenizer.name, *_told(manifest.problems(tokenizer))
    if is_exported(run):
        yield WEIGHTS, *_told(manifest.problems(run))
        return
    for step in checkpoint.steps(run):
        yield f"checkpoints/{step}", *_told(checkpoint.problems(run, step))
    if checkpoint.has_tree(frozen := at(run) / "frozen"):
        yield "frozen", *_told(checkpoint.folder_problems(frozen))
    elif config is not None and config.task != "first_stage" and checkpoint.has_checkpoint(run):
        yield "frozen", "it is missing: without first stage and latent scale the checkpoints cannot be used", True
    if is_exported(best := at(run) / "best"):
        yield from ((f"{best.name}/{name}", found, bad) for name, found, bad in audit(best))


def _same_tokens(one: Path, other: Path) -> bool:
    """Whether two folders of tokenizers give the same numbers, as far as their files say; folders that are not there
    are alike."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
    pairs = ((folder / name for folder in (one, other)) for name in names)
    return all(a.exists() == b.exists() and (not a.exists() or a.read_bytes() == b.read_bytes()) for a, b in pairs)


def _told(problems: list[str] | None) -> tuple[str, bool]:
    if problems is None:
        return f"not checked: it has no {manifest.NAME} (an older version wrote it)", False
    return "; ".join(problems) or "ok", bool(problems)


def first_stage_differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """The one rule for "the same first stage": what differs between two recipes, "option: ours, theirs" each.

    Where it comes from, and its dropout, do not count.
    """
    skip = ("checkpoint", "recipe", "dropout") + (() if ours.first_stage.kind == "vq" else build.VQ_ONLY)
    one, other = (build.keywords(config.first_stage, skip) for config in (ours, theirs))
    names = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    return [f"first_stage.{name}: {one.get(name)!r} here, {other.get(name)!r} there" for name in names]


def latent_differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """What differs between the latents of two recipes, "option: ours, theirs" each; scales are compared by value."""
    kinds = [config.get("latent_scale_kind", "scalar") for config in (ours, theirs)]
    scaling = []
    if kinds[0] != kinds[1]:
        alike = f"train with --config.latent_scale_kind={kinds[1]}"
        scaling = [f"latent_scale_kind: {kinds[0]!r} here, {kinds[1]!r} there; {alike}"]
    return first_stage_differences(ours, theirs) + scaling


def check_same_latents(ours: ConfigDict, theirs: ConfigDict, run: str | Path) -> None:
    """ConfigError unless a classifier (ours) and the diffusion model in `run` (theirs) have the same noised latents."""
    for name, usual in SCHEDULE_DEFAULTS.items():
        if theirs.diffusion.get(name, usual) != usual:
            raise ConfigError(
                f"the model in {run} has diffusion.{name}={theirs.diffusion[name]!r}: classifiers of such latents are "
                "not supported"
            )
    wrong = latent_differences(ours, theirs) + _schedule_differences(ours, theirs)
    if wrong:
        lines = "\n".join(f"    {line}" for line in wrong)
        raise ConfigError(f"the classifier does not see the noised latents of the model in {run}:\n{lines}\n{_ONE}")


def _schedule_differences(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    one, other = ({**SCHEDULE_DEFAULTS, **config.diffusion.to_dict()} for config in (ours, theirs))
    if one["kind"] == other["kind"] == "flow":
        names = ["timesteps"]
    else:
        names = [*SCHEDULE, *SCHEDULE_DEFAULTS]
    return [f"diffusion.{n}: {one[n]!r} here, {other[n]!r} there" for n in names if one[n] != other[n]]


def weaker_config(run: str | Path, model: ConfigDict, model_run: str | Path) -> ConfigDict:
    """The recipe of the diffusion model in `run`. ConfigError where it cannot guide the diffusion model `model`, which
    is in `model_run`: it must have the same noised latents and conditions; its UNet and prediction may be others."""
    config = config_of(run, "the weaker model")
    if config.task != "ldm":
        raise Missing(f"a weaker diffusion model: {run} holds a run of task {config.task!r}")
    wrong = latent_differences(model, config) + _schedule_differences(model, config)
    here, there = (conditions.condition_of(c).shapes(build.frame(c)) for c in (model, config))
    one, other = (c.conditioner.to_dict() for c in (model, config))
    wrong += [
        f"conditioner.{name}: {one.get(name)!r} here, {other.get(name)!r} there"
        for name in ("kind", "n_classes")
        if one.get(name) != other.get(name)
    ]
    wrong += [f"the fields of its condition: {here} here, {there} there"] if here != there else []
    if not _same_tokens(tokenizer_of(model_run), tokenizer_of(run)):
        wrong.append(f"the tokenizer: {tokenizer_of(model_run)} here, {tokenizer_of(run)} there")
    if wrong:
        lines = "\n".join(f"    {line}" for line in wrong)
        raise ConfigError(f"the model in {run} cannot guide the model in {model_run}:\n{lines}")
    return config


def weaker_model(
    run: str | Path, step: int | None, model: ConfigDict, model_frozen: Tree, model_run: str | Path
) -> tuple[LDM, Tree, int | None]:
    """(LDM, {"params", "frozen"}, step) for autoguidance, averaged parameters. "frozen" is what it has in place of the
    model's: its conditioner, where that does not learn. ConfigError unless it has the same latents."""
    config = weaker_config(run, model, model_run)
    params, frozen, step = model_of(config, run, step)
    theirs = jax.device_get(latents_of(model_frozen))
    same = jax.tree.map(np.array_equal, frozen["first_stage"], theirs["first_stage"])
    if not (same_scale(frozen, theirs) and all(jax.tree.leaves(same))):
        raise ConfigError(
            f"the model in {run} has another first stage or latent scale than that in {model_run}: train it with the "
            "same config.first_stage.checkpoint and config.latent_scale"
        )
    own = {name: tree for name, tree in frozen.items() if name not in theirs}
    return build.ldm(config), {"params": params, "frozen": own}, step


def same_scale(one: Tree, other: Tree) -> bool:
    """Whether two `frozen` shift and scale latents alike, to 1e-5."""
    pairs = [[np.asarray(frozen.get(name, 0.0)) for frozen in (one, other)] for name in SCALING]
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=0) for a, b in pairs)


def describe_scale(frozen: Tree) -> str:
    """The number or numbers that a `frozen` scales its latents by."""
    if "latent_shift" not in frozen:
        return f"{float(frozen['latent_scale']):.6g}"
    scale, shift = (", ".join(f"{x:.4g}" for x in np.asarray(frozen[name])) for name in SCALING)
    return f"({scale}) after a shift by ({shift})"


def classifier_config(run: str | Path, model: ConfigDict, model_run: str | Path) -> ConfigDict:
    """The recipe of the classifier in `run`. ConfigError where it cannot guide the diffusion model `model`."""
    config = config_of(run, "the classifier")
    if config.task != "classifier":
        raise Missing(f"a classifier: {run} holds a run of task {config.task!r}, not of a classifier")
    check_same_latents(config, model, model_run)
    return config


def classifier(
    run: str | Path, model: ConfigDict, model_frozen: Tree, model_run: str | Path
) -> tuple[LatentClassifier, Tree, int | None]:
    """(LatentClassifier, its averaged parameters, step). ConfigError unless it was trained on the model's latents."""
    config = classifier_config(run, model, model_run)
    params, frozen, step = model_of(config, run)
    check_same_weights(frozen, jax.device_get(model_frozen), model_run)
    return build.classifier(config), params, step


def check_same_weights(classifier: Tree, model: Tree, run: str | Path) -> None:
    """ConfigError unless both `frozen` hold the same latent scale and first stage; `run`: of the model."""
    if not same_scale(classifier, model):
        ours, theirs = (describe_scale(frozen) for frozen in (classifier, model))
        raise ConfigError(f"the latent scale is {ours} of the classifier, {theirs} of the model in {run}. {_ONE}")
    same = jax.tree.map(np.array_equal, classifier["first_stage"], model["first_stage"])
    if not all(jax.tree.leaves(same)):
        raise ConfigError(
            f"the classifier was trained on latents of another first stage than the model in {run}. {_ONE}"
        )


def lpips_params(net: str, folder: str | Path, otherwise: str) -> Tree:
    """Parameters of LPIPS(net) from the folder that make_lpips_weights.py fills. Missing ends with `otherwise`."""
    try:
        return load_lpips(Path(folder) / f"lpips_{net}.safetensors", net)
    except FileNotFoundError as error:
        raise Missing(f"LPIPS weights: {error}\n{otherwise}") from None


def leaves_of(section: ConfigDict) -> dict[str, Any]:
    """{dotted name: value} as JSON has them, to compare sections of two recipes."""
    return dict(config_file.leaves(json.loads(section.to_json())))
