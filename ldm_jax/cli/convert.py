"""Converts models of the original PyTorch code and of diffusers to run directories, and back.

    python convert.py --config=celeba_ldm4 --from model.ckpt --to runs/celeba
    python convert.py --from sd-vae-ft-mse --to runs/sd_vae     (a folder of diffusers tells its recipe)
    python convert.py --from runs/celeba --to model.ckpt        (or model.safetensors, or a folder)
    python convert.py --from runs/celeba --to exported --export (the model alone, for this program)
    python convert.py --from runs/celeba --to averaged --ema-sigma=0.08     (the same with a post-hoc EMA)
    python convert.py --check runs/celeba                       (are all its files whole?)

In: .ckpt, .pth (nothing in them is executed, torch is not needed), .safetensors, or a folder of diffusers. --config is
the recipe of the model that a file holds; options are overridden as in train.py (--config.latent_scale=0.18). A
first-stage recipe takes the first stage out of a whole LDM. Files of DiT have no first stage: give it with
--config.first_stage.checkpoint=RUN. The run directory works with sample.py and train.py at once.

Out: the direction follows from --from being a run directory. Names ending in .ckpt, .pth or .safetensors get the
original's keys (or those of DiT), any other name becomes a folder of diffusers. What the original held and nothing here
reads is in the run's original.safetensors, so that a model comes back bit by bit. --export and --ema-sigma write a
folder that stands wherever a run directory can be given, except for going on with its training.

--check compares all files with what was written and exits with 1 if one is bad. Installed: ldm-convert.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm_jax import shipped
from ldm_jax.cli import options
from ldm_jax.errors import UsageError

TOKENIZER = "tokenizer"  # its folder, in a run directory and with diffusers
TORCH_ENDINGS = (".ckpt", ".pth", ".pt")
Tree = Any


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Any]:
    """(arguments, the configuration or None). Exits with 2 for wrong arguments."""
    parser = options.Parser(__doc__)
    add = parser.add_argument
    add("--from", dest="source", help="file, folder of diffusers, or run directory")
    add("--to", dest="target", help="run directory to make; or file or folder to write")
    add("--check", metavar="RUN", help="says which files of a run are damaged")
    add("--config", help="recipe of the model, NAME[:VARIANT]; needed for files")
    add("--checkpoint", type=int, metavar="STEP", help="writing: of this step (default: the newest)")
    add("--no-ema", action="store_true", help="writing: the raw, not the averaged parameters")
    add("--ema-sigma", type=float, metavar="S", help="writing: the post-hoc EMA of this width")
    add("--export", action="store_true", help="writing: the model alone, for this program")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        metavar="TYPE",
        help="of --export: float32, bfloat16, float16",
    )
    args, args.overrides = parser.parse_with_overrides(argv)
    parser.make_local(args, "check", source="--from", target="--to")
    others = (args.source, args.target, args.config, args.checkpoint, args.ema_sigma, args.dtype)
    if args.check is not None:
        if args.overrides or args.no_ema or args.export or any(other is not None for other in others):
            parser.error("--check goes alone: python convert.py --check RUN")
        return args, None
    if args.source is None or args.target is None:
        parser.error("--from and --to are needed; or --check RUN")
    run = _is_run(shipped.find(args.source))
    if args.ema_sigma is not None and (not run or args.no_ema):
        parser.error("--ema-sigma is for --from RUN, a run directory, and has no --no-ema")
    args.chosen = args.config is None and not run
    if args.chosen:
        try:
            args.config, told = recipe_of(Path(args.source))
        except UsageError as error:
            parser.error(f"{error}{shipped.hint(args.source)}")
        args.overrides = told + args.overrides
    args.importing = args.config is not None
    if args.importing and run:
        parser.error(f"{args.source} is a run directory, which knows its own configuration: leave --config out")
    if args.importing and (args.checkpoint is not None or args.no_ema or args.export):
        parser.error("--checkpoint, --no-ema and --export belong to writing from a run directory")
    if args.dtype and not args.export and args.ema_sigma is None:
        parser.error("--dtype belongs to --export and --ema-sigma")
    if not args.importing and args.overrides:
        parser.error(f"{args.overrides[0]} belongs to reading; a run directory has its configuration")
    return args, parser.recipe(args.config, args.overrides) if args.importing else None


def _is_run(path: Path) -> bool:
    """Whether a folder has the config.json of a run, perhaps a damaged one, which reading it tells."""
    try:
        text = (path / "config.json").read_bytes()
    except OSError:
        return False
    return b'"task": ' in text or b'"crc32:' in text[:80]


def recipe_of(source: Path) -> tuple[str, list[str]]:
    """(recipe, options of it) of a folder of diffusers. UsageError if it cannot be told."""
    from ldm_jax import recipes
    from ldm_jax.convert import diffusers_recipe, tensors

    if source.suffix not in tensors.ENDINGS:
        tensors.check_there(source)
    found = diffusers_recipe.options_of(source)
    if found is None:
        raise UsageError(f"{source} is no run directory; to convert it to one, give its recipe: --config=NAME")
    kind, wanted = found
    changes = {name: _changes(recipes.load(name), wanted) for name in diffusers_recipe.RECIPES[kind]}
    best = min(changes, key=lambda name: ("first_stage.ch_mult" in changes[name], len(changes[name])))
    return best, [f"--config.{option}={value}".replace(" ", "") for option, value in changes[best].items()]


def _changes(config, wanted: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the recipe has, and with another value."""
    from ldm_jax.convert.diffusers_settings import same

    known = config.to_dict()
    out = {}
    for option, value in wanted.items():
        section, _, name = option.rpartition(".")
        options = known.get(section, {}) if section else known
        if name in options and not same(options[name], value):
            out[option] = value
    return out


def _betas(config):
    """[T] of a diffusion model's schedule, else None."""
    from ldm_jax import build

    if config.task == "ldm" and config.diffusion.get("kind") == "flow":
        raise UsageError("config.diffusion.kind='flow': the original's files hold diffusion models alone")
    return build.schedule(config).betas if config.task == "ldm" else None


def _latent_size(config) -> int | None:
    """Height of a diffusion model's latents, else None."""
    from ldm_jax import build

    return build.latent_shape(config)[0] if config.task == "ldm" else None


# In


def fresh_discriminator(config) -> Tree:
    """{"params", "batch_stats"} as numpy, as a new run would begin with."""
    import jax
    import jax.numpy as jnp

    from ldm_jax.training import setup

    model = setup.task(config).discriminator
    size = 3 * 2**config.loss.disc_layers
    variables = jax.jit(model.init)(jax.random.key(config.seed), jnp.zeros((1, size, size, config.data.channels)))
    return jax.device_get(dict(variables))


def to_run(args: argparse.Namespace, config) -> None:
    from ldm_jax import checkpoint, config_file, manifest
    from ldm_jax.convert import tensors
    from ldm_jax.convert.safetensors_file import write_safetensors
    from ldm_jax.training import setup

    target = Path(args.target)
    _check_new(target)
    abstract, frozen = setup.abstract_run(config)
    template = tensors.weights_of(config, abstract, frozen, ema=False)
    source = tensors.read(Path(args.source), config, template, _latent_size(config))
    weights, beside = tensors.fill(source, config, abstract, frozen, _betas(config), _latent_size(config))
    if source.layout == "dit":
        weights["first_stage"] = setup.frozen(config, target)["first_stage"].get("params", {})
    step = config.steps if source.step is None else source.step
    scale = source.scaling_factor
    told = _latent_options(source) if config.task == "first_stage" else {}
    if "latent_scale" in config:
        for name, value in _changes(config, told).items():
            config[name] = value
            args.overrides.append(f"--config.{name}={value}".replace(" ", ""))
    if config.task == "first_stage":
        weights = {"discriminator": {}} | weights
        weights["discriminator"] = weights["discriminator"] or fresh_discriminator(config)
    state = tensors.train_state(config, abstract, weights, step)
    with _whole(target) as partial:
        if config.task == "ldm":
            first_stage = {"params": weights["first_stage"]} if frozen["first_stage"] else {}
            checkpoint.save_tree(
                partial / "frozen", {"first_stage": first_stage, "latent_scale": weights["latent_scale"]}
            )
            if config.conditioner.kind == "text" and (Path(args.source) / TOKENIZER).is_dir():
                shutil.copytree(Path(args.source) / TOKENIZER, partial / TOKENIZER)
                manifest.write(partial / TOKENIZER)
        tensors_held = {key: [str(array.dtype), list(array.shape)] for key, array in source.state.items()}
        metadata = {"layout": source.layout, "step": str(step), "manifest": json.dumps(tensors_held)}
        if scale is not None:
            metadata["scaling_factor"] = str(scale)
        if source.latents:
            metadata["latents"] = json.dumps(source.latents)
        write_safetensors(partial / tensors.KEPT, tensors.given(beside), metadata)
        checkpoint.save_from_numpy(partial, step, state)
        config_file.save(partial, config.to_dict())
    _tell(args, config, source, weights, beside, step)


def _latent_options(source) -> dict[str, Any]:
    """Options of a recipe that say what the folder of an autoencoder says of its latents."""
    if source.channels is not None:
        shift, scale = source.channels
        return dict(latent_scale_kind="channels", latent_channel_shift=shift, latent_channel_scale=scale)
    return dict(latent_scale=source.scaling_factor) if source.scaling_factor else {}


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A new folder to fill, TARGET.partial. It becomes `target`, which does not exist or is an empty folder, when all
    went well; otherwise it is removed."""
    partial = target.with_name(target.name + ".partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise UsageError(
            f"{partial} exists already: another conversion is at work, or was interrupted. Remove it, or give another "
            "name with --to"
        ) from None
    try:
        yield partial
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _tell(args, config, source, weights: Tree, beside: dict, step: int) -> None:
    from ldm_jax import conditions, tree

    if args.chosen:
        print(f"recipe {args.config}, which its config.json fits" + "".join(f"\n  {o}" for o in args.overrides))
    print(f"{args.source}: {len(source.state)} tensors, {len(source.state) - len(beside)} of them used")
    for name, part in weights.items():
        if name not in ("latent_scale", "ema") and tree.count(part):
            print(f"  {name}: {tree.count(part) / 1e6:.2f}M parameters")
    if config.task == "ldm":
        where = "the file's" if "scale_factor" in source.state else "the recipe's"
        print(f"  latent scale {float(weights['latent_scale']):.5f} ({where})")
        if source.layout == "dit":
            print("  averaged weights: the file has one set of weights, which is taken for both")
        elif config.ema.decay:
            print("  averaged weights: " + ("yes" if "ema" in weights else "none in the file; the raw ones stand in"))
        elif any(key.startswith("model_ema.") for key in beside):
            print("  averaged weights: in the file but not used, because the recipe has config.ema.decay=0")
    print(f"  step {step} ({'the file' if source.step is not None else 'the recipe: config.steps'})")
    for note in source.notes:
        print(f"  {note}")
    print(f"{args.target} is ready:")
    if config.task == "ldm":
        condition = " ".join(part.example for part in conditions.condition_of(config).parts().values())
        print(f"    python sample.py --workdir={args.target} --steps=50 {condition}")
    if config.task == "first_stage" and (told := _latent_options(source)):
        for_latents = " ".join(shlex.quote(f"--config.{n}={v}".replace(" ", "")) for n, v in told.items())
        print(f"    for a diffusion model on it: --config.first_stage.checkpoint={args.target} {for_latents}")
    changed = " ".join(shlex.quote(o) for o in args.overrides if not o.startswith("--config.steps"))
    print(
        f"    python train.py --config={args.config} --workdir={args.target} --config.steps={step + 10_000} {changed}"
        "   (fine-tuning, 10,000 steps)"
    )


# Out


def to_file(args: argparse.Namespace) -> None:
    from ml_collections import ConfigDict

    from ldm_jax import config_file

    source, target = shipped.find(args.source), Path(args.target)
    _check_new(target)
    config = ConfigDict(config_file.load(source))
    _check_writable(config, target)
    state, frozen = restore(config, source, args.checkpoint)
    if target.suffix in (*TORCH_ENDINGS, ".safetensors"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_file(target, config, source, state, frozen, averaged=not args.no_ema)
    else:
        _write_folder(target, config, source, state, frozen, averaged=not args.no_ema)
    print(f"{target} holds the model of {source} at step {int(state.step)}")


def export(args: argparse.Namespace) -> None:
    """The model of a run, of any task, in a folder of this program; with --ema-sigma, with that average."""
    from ldm_jax import rundir
    from ldm_jax.training import posthoc

    source, target = Path(args.source), Path(args.target)
    _check_new(target)
    config = rundir.config_of(source)
    if args.ema_sigma is None:
        params, frozen, step = rundir.model_of(config, source, args.checkpoint, not args.no_ema)
    else:
        params, step = posthoc.reconstruct(source, args.ema_sigma, args.checkpoint)
        frozen = rundir.kept_frozen(config, source)
    with _whole(target) as partial:
        rundir.write_exported(partial, config, params, frozen, args.dtype or "float32", rundir.tokenizer_of(source))
    at_step = "" if step is None else f" at step {step}"
    average = "" if args.ema_sigma is None else f", averaged with the width {args.ema_sigma:g}"
    print(f"{target} holds the model of {source}{at_step}{average}")


def _check_writable(config, target: Path) -> None:
    """UsageError for models that neither the original's files nor folders of diffusers can hold."""
    from ldm_jax import build

    if config.task == "ldm" and build.has_channel_scale(config):
        raise UsageError(
            "config.latent_scale_kind='channels': the original's files and diffusers' pipelines of latent diffusion "
            "have one latent scale. --export writes the model alone, for this program"
        )
    younger = {"first_stage.patch": config.first_stage.get("patch", 1) != 1}
    if config.task == "ldm":
        younger["network.kind"] = config.network.kind == "mean"
        younger["unet.context"] = config.unet.get("context", "cross_attention") != "cross_attention"
    for name in (name for name, used in younger.items() if used):
        raise UsageError(
            f"config.{name}: neither the original's files nor folders of diffusers have this. --export writes the "
            "model alone, for this program"
        )
    missing = [n for n in ("use_quant_conv", "use_post_quant_conv") if not config.first_stage.get(n, True)]
    if missing and target.suffix in (*TORCH_ENDINGS, ".safetensors"):
        raise UsageError(
            f"config.first_stage.{missing[0]}=False: first stages of the original have this convolution. Write a "
            "folder of diffusers: --to FOLDER"
        )
    network = config.network.kind if config.task == "ldm" else None  # a file of a transformer holds nothing else
    held = {None: ("first_stage",), "unet": ("first_stage", "unet")}.get(network, ())
    other = [name for name in held if config[name].get("norm_groups", 32) != 32]
    if other and target.suffix in (*TORCH_ENDINGS, ".safetensors"):
        raise UsageError(
            f"config.{other[0]}.norm_groups={config[other[0]].norm_groups}: the original's networks have 32, and its "
            "files cannot say another number. Write a folder of diffusers (--to FOLDER), or with --export the model "
            "alone, for this program"
        )


def _check_new(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} exists already; give a new name")


def restore(config, run: Path, step: int | None) -> tuple[Any, Tree]:
    """(TrainState without optimiser state, frozen) of a run as numpy arrays."""
    from ldm_jax import rundir
    from ldm_jax.training import setup

    state = setup.restore_parts(config, run, ("step", "params", "ema", "variables"), step)
    return state, rundir.kept_frozen(config, run) if config.task == "ldm" else {}


def _write_file(target: Path, config, run: Path, state, frozen: Tree, averaged: bool) -> None:
    from ldm_jax.convert import dit, tensors
    from ldm_jax.convert.safetensors_file import write_safetensors
    from ldm_jax.convert.torch_writer import write_torch

    if dit.chosen(config):
        dit.check(config)
        chosen = state.replace(params=state.ema) if averaged and state.ema else state
        weights = dit.parts_of(tensors.weights_of(config, chosen, frozen, ema=False))
    else:
        weights = tensors.weights_of(config, state, frozen, ema=True)
    of_config = dict(betas=_betas(config), latent_size=_latent_size(config))
    out = tensors.tensors_of(config, run, state, weights, extras=True, **of_config)
    step = int(state.step)
    if target.suffix == ".safetensors":
        write_safetensors(target, out, {"format": "pt", "global_step": str(step)})
    else:
        write_torch(target, {key: give for key, (_, give) in out.items()}, step)


def _write_folder(target: Path, config, run: Path, state, frozen: Tree, averaged: bool) -> None:
    from ldm_jax import build
    from ldm_jax.convert import diffusers, tensors

    if averaged and state.ema:
        state = state.replace(params=state.ema)
    weights = tensors.weights_of(config, state, frozen, ema=False)
    parts = tensors.components(config, weights, _latent_size(config))
    if config.task == "ldm":
        for note in diffusers.check_pipeline(parts, config.conditioner.kind):
            print(f"note: {note}")
    else:
        channels = build.channel_scale(config)
        told = {} if channels is None else diffusers.latents_config(channels[1], channels[0])
        parts[0].config.update(tensors.kept_latents(run) or told)
    out = tensors.tensors_of(config, run, state, weights, extras=False)
    with _whole(target) as partial:
        for part in parts:
            where = partial if config.task == "first_stage" else partial / part.folder
            diffusers.write_component(where, part, out)
        if config.task == "ldm":
            diffusers.write_pipeline(partial, parts, config.conditioner.kind, config.diffusion)
            if config.conditioner.kind == "text":
                _write_tokenizer(run, partial, target, config.conditioner.tokenizer)


def _write_tokenizer(run: Path, folder: Path, final: Path, name: str) -> None:
    """The run's own tokenizer, or that of the folder `name`; else says what is missing."""
    found = next((t for t in (run / TOKENIZER, Path(name)) if t.is_dir()), None)
    if found:
        shutil.copytree(found, folder / TOKENIZER)
    else:
        print(f"note: {final / TOKENIZER}, which its pipeline needs, is not written; it is that of {name}")


# Check


def check(run: str) -> bool:
    """Prints a line for each part of the run directory; whether all of them are good."""
    from itertools import chain

    from ldm_jax import rundir
    from ldm_jax.training import snapshots

    if not shipped.find(run).is_dir():
        raise UsageError(f"--check={run} is not a folder.{shipped.hint(run)}")
    good = True
    for name, found, bad in chain(rundir.audit(run), snapshots.audit(shipped.find(run))):
        print(f"{'BAD ' if bad else ''}{name}: {found}", flush=True)
        good &= not bad
    return good


def main(argv: Sequence[str] | None = None) -> None:
    args, config = parse(argv)
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    try:
        if args.check is not None:
            sys.exit(0 if check(args.check) else 1)
        if args.importing:
            to_run(args, config)
        elif args.export or args.ema_sigma is not None:
            export(args)
        else:
            to_file(args)
    except UsageError as error:
        options.stop(error)
