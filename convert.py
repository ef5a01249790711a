"""Converts models of the original PyTorch code and of diffusers to run directories, and back.

    python convert.py --config=configs/celeba_ldm4.py --from model.ckpt --to runs/celeba
    python convert.py --config=configs/first_stage_vq_f4.py --from vqvae/ --to runs/vq_f4
    python convert.py --from runs/celeba --to model.ckpt        (or model.safetensors, or a folder)

In: .ckpt, .pth (nothing in them is executed, torch is not needed), .safetensors, or a folder of diffusers with
unet/, vqvae/, ... or one autoencoder. The run directory works with sample.py and train.py at once. --config is the
recipe of the model that the file holds; options are overridden as in train.py (--config.latent_scale=0.18). With a
first-stage recipe, the first stage inside a whole LDM is taken out.

Out: the direction follows from --from being a run directory. Names ending in .ckpt, .pth or .safetensors get the
original's keys, any other name becomes a folder of diffusers. What the original held and we have no use for was kept
in original.safetensors, so that a model comes back bit by bit.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = "convert.py"
KEPT = "original.safetensors"  # in a converted run directory: what has no leaf, and the list of all keys
TOKENIZER = "tokenizer"  # its folder, in a run directory and with diffusers
TORCH_ENDINGS = (".ckpt", ".pth", ".pt")
# What sample.py must be told, by the kind of condition, in the command that is printed.
SAMPLE_OPTIONS = {
    "none": "--num=16",
    "class": "--label=0",
    "text": '--prompt="a painting of a squirrel"',
    "layout": "--layout=BOXES.json",
    "semantic": "--segmentation=MAP.png",
    "superres": "--image=SMALL.png",
    "inpaint": "--image=PICTURE.png --mask=MASK.png",
    "vectors": "--vectors=VECTORS.npy",
    "hybrid": "--help",
}
Tree = Any


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Any]:
    """(arguments, the configuration or None). Exits with 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, help="file, folder of diffusers, or run directory")
    add("--to", dest="target", required=True, help="run directory to make; or file or folder to write")
    add("--config", help="recipe of the model, configs/NAME.py[:variant]; needed when --from is not a run directory")
    add("--checkpoint", type=int, help="writing: step of the run's checkpoint (default: the newest)")
    add("--no-ema", action="store_true", help="writing a folder: the raw instead of the averaged parameters")
    args, rest = parser.parse_known_args(argv)
    unknown = [option for option in rest if not option.startswith("--config.")]
    if unknown:
        parser.error(f"unexpected: {' '.join(unknown)} (options of the recipe are written --config.NAME=VALUE)")
    args.overrides = rest
    args.importing = args.config is not None
    run = _is_run(Path(args.source))
    if not args.importing and not run:
        parser.error(f"{args.source} is no run directory; to convert it to one, give its recipe: --config=configs/X.py")
    if args.importing and run:
        parser.error(f"{args.source} is a run directory, which knows its own configuration: leave --config out")
    if args.importing and (args.checkpoint is not None or args.no_ema):
        parser.error("--checkpoint and --no-ema belong to writing from a run directory")
    if not args.importing and rest:
        parser.error(f"{rest[0]} belongs to reading; a run directory has its configuration")
    return args, _config(parser, args) if args.importing else None


def _is_run(path: Path) -> bool:
    try:
        return "task" in json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False


def _config(parser: argparse.ArgumentParser, args: argparse.Namespace):
    from ldm_jax import recipe

    try:
        return recipe.load(args.config, args.overrides)
    except ValueError as error:
        parser.error(str(error))


@dataclass
class Source:
    """A model as read: tensors with the original's keys, its step if it says one, and what was noticed."""

    state: dict
    layout: str  # compvis | diffusers
    step: int | None = None
    notes: list[str] = field(default_factory=list)


def weights_of(config, state, frozen: Tree, ema: bool) -> Tree:
    """The weights tree of convert/compvis.py from a state and frozen, of arrays or of shapes."""
    if config.task == "classifier":
        raise ValueError("classifiers are not converted: no weights of one were published")
    if config.task == "first_stage":
        discriminator = {"params": state.params["discriminator"]} | dict(state.variables)
        return {"autoencoder": state.params["autoencoder"], "discriminator": discriminator}
    averaged = {"ema": state.ema["unet"]} if ema and state.ema else {}
    first_stage = frozen["first_stage"].get("params", {})
    kept = {name: frozen[name] for name in ("latent_scale", "conditioner") if name in frozen}
    return dict(state.params) | averaged | {"first_stage": first_stage} | kept


def components(config, weights: Tree) -> list:
    """The parts that a folder of diffusers has for this configuration."""
    from ldm_jax import build
    from ldm_jax.convert import compvis, diffusers, names

    leaves = _flatten(weights)
    shapes = {k: names.torch_shape(p, leaves[p].shape) for p, k in compvis.original_keys(weights).items()}
    if config.task == "first_stage":
        return [diffusers.autoencoder(config.first_stage, shapes, "", float(config.get("latent_scale", 0)) or 1.0)]
    kind = config.conditioner.kind
    if kind not in diffusers.PIPELINES:
        raise ValueError(f"diffusers has no pipeline for the condition {kind!r}; use .ckpt or .safetensors instead")
    if config.first_stage.kind == "identity":
        raise ValueError("diffusers has no pipeline without a first stage; use .ckpt or .safetensors instead")
    context = config.conditioner.dim if config.unet.use_spatial_transformer else None
    scale = weights["latent_scale"]
    scale = float(scale) if hasattr(scale, "__float__") else 1.0
    found = [
        diffusers.unet(config.unet, shapes, context, build.latent_shape(config)[0]),
        diffusers.autoencoder(config.first_stage, shapes, compvis.FIRST_STAGE, scale),
    ]
    return [*found, diffusers.bert(config.conditioner, shapes)] if kind == "text" else found


def _flatten(weights: Tree) -> dict:
    from ldm_jax import tree

    return tree.flatten(weights)


# In


def read(path: Path, config, weights: Tree) -> Source:
    """The model in a file or folder, whatever its format."""
    from ldm_jax.convert import diffusers
    from ldm_jax.convert.safetensors_file import read_safetensors
    from ldm_jax.convert.torch_reader import read_torch_checkpoint

    if path.is_dir():
        state, configs = diffusers.read_folder(path, components(config, weights))
        return _from_diffusers(Source(state, "diffusers"), configs, config)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        step = metadata.get("global_step", "")
        return Source(state, "compvis", int(step) if step.isdigit() else None)
    state, step = read_torch_checkpoint(path)
    return Source(state, "compvis", step)


def _from_diffusers(source: Source, configs: dict, config) -> Source:
    import numpy as np

    from ldm_jax.convert import diffusers

    if config.task == "ldm":
        scale = diffusers.scale_of(configs["vqvae"])
        if scale is not None:
            source.state["scale_factor"] = np.float32(scale)
        if "scheduler" in configs:
            diffusers.check_scheduler(configs["scheduler"], config.diffusion)
    for name, found in configs.items():
        eps = found.get("norm_eps", 1e-5)
        if name == "unet" and eps != 1e-5:
            source.notes.append(f"{name}: norm_eps {eps} in the folder; the original and this program have 1e-5")
    return source


def fill(source: Source, config, state, frozen: Tree) -> tuple[Tree, dict]:
    """(weights tree of arrays, what has no leaf). Adds to the source's notes what was decided."""
    from ldm_jax.convert import compvis

    weights = weights_of(config, state, frozen, ema=compvis.has_ema(source.state))
    if config.task == "first_stage":
        inside = compvis.first_stage_of(source.state)
        if inside:
            source.state = inside
            source.notes.append("the first stage of a whole LDM")
        if not any(key.startswith("loss.discriminator.") for key in source.state):
            del weights["discriminator"]
            source.notes.append("no discriminator in it: fine-tuning begins with an untrained one")
        return compvis.split(source.state, weights)
    from ldm_jax import build

    compvis.check_schedule(source.state, build.schedule(config).betas)
    if "scale_factor" not in source.state:
        weights["latent_scale"] = {}
    filled, beside = compvis.split(source.state, weights)
    filled["latent_scale"] = _scale(source, config, filled["latent_scale"])
    return filled, beside


def _scale(source: Source, config, found):
    """The latent scale: the file's, else the recipe's, else 1 for VQ."""
    import numpy as np

    if "scale_factor" in source.state:
        if config.latent_scale and not np.isclose(float(found), config.latent_scale, rtol=1e-3):
            source.notes.append(f"latent scale {float(found):.5f} of the file, not the recipe's {config.latent_scale}")
        return np.asarray(found, np.float32)
    if not config.latent_scale and config.first_stage.kind == "kl":
        raise ValueError(
            "the file says no latent scale (scale_factor) and the recipe has none, without which its latents mean "
            "nothing: give the model's with --config.latent_scale=NUMBER"
        )
    return np.asarray(config.latent_scale or 1.0, np.float32)


def train_state(config, abstract, weights: Tree, step: int):
    """TrainState of numpy arrays: the weights, no momentum, the learning rate's schedule at `step`."""
    import jax
    import numpy as np
    import optax

    def zeros(leaf):
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    def moments(part):
        if isinstance(part, optax.ScaleByScheduleState):
            return part._replace(count=np.asarray(step, part.count.dtype))
        return jax.tree.map(zeros, part)

    if config.task == "first_stage":
        params = {"autoencoder": weights["autoencoder"], "discriminator": weights["discriminator"]["params"]}
        variables, ema = {"batch_stats": weights["discriminator"].get("batch_stats", {})}, {}
    else:
        params = {name: weights[name] for name in abstract.params}
        ema = params | {"unet": weights.get("ema", params["unet"])} if abstract.ema else {}
        variables = {}
    opt_state = jax.tree.map(moments, abstract.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))
    key = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    return abstract.replace(
        step=np.asarray(step, np.int32), params=params, ema=ema, opt_state=opt_state, variables=variables, key=key
    )


def fresh_discriminator(config) -> Tree:
    """{"params", "batch_stats"} as numpy, as a new run would begin with."""
    import jax
    import jax.numpy as jnp

    from ldm_jax import build

    model = build.task(config).discriminator
    size = 3 * 2**config.loss.disc_layers
    variables = jax.jit(model.init)(jax.random.key(config.seed), jnp.zeros((1, size, size, config.data.channels)))
    return jax.device_get(dict(variables))


def to_run(args: argparse.Namespace, config) -> None:
    from ldm_jax import build
    from ldm_jax.convert.safetensors_file import write_safetensors
    from ldm_jax.training import checkpoint

    target = Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already; give a new directory")
    abstract, frozen = build.abstract_run(config)
    source = read(Path(args.source), config, weights_of(config, abstract, frozen, ema=False))
    weights, beside = fill(source, config, abstract, frozen)
    step = config.steps if source.step is None else source.step
    if config.task == "first_stage":
        weights = {"discriminator": {}} | weights
        weights["discriminator"] = weights["discriminator"] or fresh_discriminator(config)
    state = train_state(config, abstract, weights, step)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if config.task == "ldm":
            first_stage = {"params": weights["first_stage"]} if frozen["first_stage"] else {}
            checkpoint.save_tree(
                partial / "frozen", {"first_stage": first_stage, "latent_scale": weights["latent_scale"]}
            )
            if config.conditioner.kind == "text" and (Path(args.source) / TOKENIZER).is_dir():
                shutil.copytree(Path(args.source) / TOKENIZER, partial / TOKENIZER)
        manifest = {key: [str(array.dtype), list(array.shape)] for key, array in source.state.items()}
        metadata = {"layout": source.layout, "step": str(step), "manifest": json.dumps(manifest)}
        write_safetensors(partial / KEPT, _given(beside), metadata)
        checkpoint.save_from_numpy(partial, step, state)
        checkpoint.keep_config(partial, config.to_dict())
        _move(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _tell(args, config, source, weights, beside, step)


def _move(partial: Path, target: Path) -> None:
    """`partial` becomes `target`, which does not exist or is an empty folder."""
    if target.exists():
        target.rmdir()
    os.replace(partial, target)


def _tell(args, config, source: Source, weights: Tree, beside: dict, step: int) -> None:
    from ldm_jax import tree

    print(f"{args.source}: {len(source.state)} tensors, {len(source.state) - len(beside)} of them used")
    for name, part in weights.items():
        if name not in ("latent_scale", "ema") and tree.count(part):
            print(f"  {name}: {tree.count(part) / 1e6:.2f}M parameters")
    if config.task == "ldm":
        where = "the file's" if "scale_factor" in source.state else "the recipe's"
        print(f"  latent scale {float(weights['latent_scale']):.5f} ({where})")
        if config.ema.decay:
            print("  averaged weights: " + ("yes" if "ema" in weights else "none in the file; the raw ones stand in"))
        elif any(key.startswith("model_ema.") for key in beside):
            print("  averaged weights: in the file but not used, because the recipe has config.ema.decay=0")
    print(f"  step {step} ({'the file' if source.step is not None else 'the recipe: config.steps'})")
    for note in source.notes:
        print(f"  {note}")
    print(f"{args.target} is ready:")
    if config.task == "ldm":
        condition = SAMPLE_OPTIONS[config.conditioner.kind]
        print(f"    python sample.py --workdir={args.target} --steps=50 {condition}")
    options = " ".join(o for o in args.overrides if not o.startswith("--config.steps"))
    print(
        f"    python train.py --config={args.config} --workdir={args.target} --config.steps={step + 10_000} {options}"
        "   (fine-tuning, 10,000 steps)"
    )


# Out


def to_file(args: argparse.Namespace) -> None:
    from ml_collections import ConfigDict

    from ldm_jax.training import checkpoint

    source, target = Path(args.source), Path(args.target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists already; give a new name")
    config = ConfigDict(checkpoint.load_config(source))
    state, frozen = restore(config, source, args.checkpoint)
    if target.suffix in (*TORCH_ENDINGS, ".safetensors"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_file(target, config, source, state, frozen)
    else:
        _write_folder(target, config, source, state, frozen, averaged=not args.no_ema)
    print(f"{target} holds the model of {source} at step {int(state.step)}")


def restore(config, run: Path, step: int | None) -> tuple[Any, Tree]:
    """(TrainState without optimiser state, frozen) of a run as numpy arrays."""
    import jax

    from ldm_jax import build

    state = build.restore_parts(config, run, ("step", "params", "ema", "variables"), step)
    frozen = jax.device_get(build.frozen(config, run, kept_only=True)) if config.task == "ldm" else {}
    return state, frozen


def tensors_of(config, run: Path, state, weights: Tree, extras: bool) -> dict:
    """{the original's key: ((type, shape), function that gives the array)} of a run.

    A converted run gives types and shapes as they came, and (`extras`) what had no leaf; keys that the original
    lacked stay away as long as nothing was trained. Other runs get the tables that the original keeps.
    """
    import ml_dtypes
    import numpy as np

    from ldm_jax.convert import compvis, names
    from ldm_jax.convert.safetensors_file import read_safetensors

    kept, metadata = read_safetensors(run / KEPT) if (run / KEPT).exists() else ({}, {})
    manifest = json.loads(metadata.get("manifest", "{}"))
    trained = int(state.step) - int(metadata.get("step", 0))
    complete = bool(manifest) and metadata["layout"] == "compvis"
    bfloat16 = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

    def tensor(path, leaf, key):
        name, shape = manifest.get(key, ("float32", names.torch_shape(path, leaf.shape)))
        dtype = bfloat16.get(name) or np.dtype(name)
        return (dtype, tuple(shape)), lambda: names.to_torch_array(path, leaf, shape).astype(dtype, copy=False)

    leaves = _flatten(weights)
    keys = compvis.original_keys(weights)
    out = {key: tensor(path, leaves[path], key) for path, key in keys.items()}
    if complete and not trained:
        out = {key: value for key, value in out.items() if key in manifest}
    elif config.task == "ldm" and "scale_factor" not in manifest and float(weights["latent_scale"]) == 1.0:
        out.pop("scale_factor", None)
    if not extras:
        return out | _given(kept)
    if config.task == "ldm" and not complete:
        from ldm_jax import build

        kept = compvis.schedule_buffers(build.schedule(config).betas) | kept
    if "ema" in weights and (trained or not complete):
        updates = int(kept.get(compvis.EMA_UPDATES, 0)) + trained
        kept[compvis.EMA_UPDATES] = np.asarray(updates, np.int32)
        kept.setdefault(compvis.EMA_DECAY, np.asarray(config.ema.decay, np.float32))
    return out | _given(kept)


def _given(arrays: dict) -> dict:
    return {key: ((array.dtype, array.shape), lambda array=array: array) for key, array in arrays.items()}


def _write_file(target: Path, config, run: Path, state, frozen: Tree) -> None:
    from ldm_jax.convert.safetensors_file import write_safetensors
    from ldm_jax.convert.torch_writer import write_torch

    out = tensors_of(config, run, state, weights_of(config, state, frozen, ema=True), extras=True)
    step = int(state.step)
    if target.suffix == ".safetensors":
        write_safetensors(target, out, {"format": "pt", "global_step": str(step)})
    else:
        write_torch(target, {key: give for key, (_, give) in out.items()}, step)


def _write_folder(target: Path, config, run: Path, state, frozen: Tree, averaged: bool) -> None:
    from ldm_jax.convert import diffusers

    if averaged and state.ema:
        state = state.replace(params=state.ema)
    weights = weights_of(config, state, frozen, ema=False)
    parts = components(config, weights)
    out = tensors_of(config, run, state, weights, extras=False)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for part in parts:
            where = partial if config.task == "first_stage" else partial / part.folder
            diffusers.write_component(where, part, out)
        if config.task == "ldm":
            diffusers.write_pipeline(partial, parts, config.conditioner.kind, config.diffusion)
            if config.conditioner.kind == "text":
                _write_tokenizer(run, partial, target, config.conditioner.tokenizer)
        _move(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tokenizer(run: Path, folder: Path, final: Path, name: str) -> None:
    """The run's own tokenizer, or that of the folder `name`; else says what is missing."""
    found = next((t for t in (run / TOKENIZER, Path(name)) if t.is_dir()), None)
    if found:
        shutil.copytree(found, folder / TOKENIZER)
    else:
        print(f"note: {final / TOKENIZER}, which its pipeline needs, is not written; it is that of {name}")


def main(argv: list[str] | None = None) -> None:
    args, config = parse(argv)
    from absl import logging

    from ldm_jax import build

    logging.set_verbosity(logging.ERROR)
    try:
        to_run(args, config) if args.importing else to_file(args)
    except (build.Missing, ValueError, OSError) as error:
        sys.exit(f"{PROGRAM}: {error}")


if __name__ == "__main__":
    main()
