"""A run's arrays <-> the tensors of a file, under the original's keys (compvis.py; of transformers dit.py), for every
layout of a file.

`state` and `frozen` are a run's, of arrays or of shapes. Beside the configuration some functions need what is made of
it: `betas` [T] of the schedule and `latent_size`, the latent's height; both are None for a first stage.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import optax
from ml_collections import ConfigDict

from ldm_jax import tree
from ldm_jax.convert import compvis, diffusers, dit, names
from ldm_jax.convert import diffusers_settings as settings
from ldm_jax.convert.safetensors_file import read_safetensors
from ldm_jax.convert.torch_reader import read_torch_checkpoint
from ldm_jax.errors import Missing, UsageError

Tree = Any
STEPS = 2**31  # steps are less: they are int32
ENDINGS = (".ckpt", ".pth", ".pt", ".safetensors", ".bin")
KEPT = "original.safetensors"  # in a converted run directory: what has no leaf, and the list of all keys


@dataclass
class Source:
    """A model as read: tensors with the original's keys, its step if it says one, and what was noticed."""

    state: dict
    layout: str  # compvis | diffusers | dit
    step: int | None = None
    notes: list[str] = field(default_factory=list)
    scaling_factor: float | None = None  # what an autoencoder of diffusers says of its latents: one scale,
    channels: tuple[tuple, tuple] | None = None  # or a shift and a scale of each channel
    latents: dict = field(default_factory=dict)  # as it stands in its config.json


def weights_of(config: ConfigDict, state: Tree, frozen: Tree, ema: bool) -> Tree:
    """The weights tree of convert/compvis.py from a state and frozen, of arrays or of shapes."""
    if config.task == "classifier":
        raise UsageError("classifiers are not converted: no weights of one were published")
    if config.task == "first_stage":
        discriminator = {"params": state.params["discriminator"]} | dict(state.variables)
        return {"autoencoder": state.params["autoencoder"], "discriminator": discriminator}
    averaged = {"ema": state.ema["unet"]} if ema and state.ema else {}
    first_stage = frozen["first_stage"].get("params", {})
    kept = {name: frozen[name] for name in ("latent_scale", "conditioner") if name in frozen}
    return dict(state.params) | averaged | {"first_stage": first_stage} | kept


def components(config: ConfigDict, weights: Tree, latent_size: int | None) -> list[diffusers.Component]:
    """The parts that a folder of diffusers has for this configuration."""
    if dit.chosen(config):
        raise UsageError("transformers have no folder of diffusers here; use a file, .pt or .safetensors, instead")
    leaves = tree.flatten(weights)
    shapes = {k: names.torch_shape(p, leaves[p].shape) for p, k in compvis.original_keys(weights).items()}
    if config.task == "first_stage":
        return [diffusers.autoencoder(config.first_stage, shapes, "", float(config.get("latent_scale", 0)) or 1.0)]
    kind = config.conditioner.kind
    if kind not in diffusers.PIPELINES:
        raise UsageError(f"diffusers has no pipeline for the condition {kind!r}; use .ckpt or .safetensors instead")
    if config.first_stage.kind == "identity":
        raise UsageError("diffusers has no pipeline without a first stage; use .ckpt or .safetensors instead")
    context = config.conditioner.dim if config.unet.use_spatial_transformer else None
    scale = weights["latent_scale"]
    scale = float(scale) if hasattr(scale, "__float__") else 1.0
    found = [
        diffusers.unet(config.unet, shapes, context, latent_size),
        diffusers.autoencoder(config.first_stage, shapes, compvis.FIRST_STAGE, scale),
    ]
    return [*found, diffusers.bert(config.conditioner, shapes)] if kind == "text" else found


def read(path: Path, config: ConfigDict, weights: Tree, latent_size: int | None) -> Source:
    """The model in a file or folder, whatever its format."""
    if path.is_dir():
        diffusion = config.diffusion if config.task == "ldm" else None
        state, configs, notes = diffusers.read_folder(path, components(config, weights, latent_size), diffusion)
        found = configs["vqvae"]
        source = Source(state, "diffusers", notes=notes, scaling_factor=diffusers.scale_of(found))
        source.channels = diffusers.channels_of(path, found)
        source.latents = {name: found[name] for name in settings.LATENTS if found.get(name) is not None}
        if config.task == "ldm" and source.channels is not None:
            raise UsageError(
                f"{path} has an autoencoder that shifts its latents, which diffusers' pipelines of latent diffusion "
                "ignore: what its UNet was trained with cannot be told. The autoencoder alone can be converted: give "
                "--from its folder"
            )
        if config.task == "ldm" and source.scaling_factor is not None:
            source.state["scale_factor"] = np.float32(source.scaling_factor)
        return source
    check_there(path)
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        found = metadata.get("global_step", "")
        step = int(found) if found.isdecimal() and len(found) < 20 else None
    else:
        state, step = read_torch_checkpoint(path)
    layout = "dit" if dit.chosen(config) else "compvis"
    return Source(state, layout, step if step is None or step < STEPS else None)


def check_there(path: Path) -> None:
    """Raises Missing if there is no such path; for what looks like a name of the hub, with the command that gets it."""
    if path.exists():
        return
    if (
        re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path))
        and path.suffix not in ENDINGS
        and not path.parent.exists()
    ):
        raise Missing(
            f"{path} is no file or folder here. If it is a name of huggingface.co, download it first:\n"
            f"    pip install huggingface_hub && hf download {path} --local-dir {path.name}\n"
            f"and give --from {path.name}"
        )
    raise Missing(f"{path} does not exist")


def fill(
    source: Source,
    config: ConfigDict,
    state: Tree,
    frozen: Tree,
    betas: np.ndarray | None,
    latent_size: int | None = None,
) -> tuple[Tree, dict]:
    """(weights tree of arrays, what has no leaf). Adds to the source's notes what was decided.

    Of a transformer's file the tree has no first stage."""
    if "latent_shift" in frozen:
        raise UsageError(
            "config.latent_scale_kind='channels': a file or folder of a diffusion model says nothing of single "
            "channels; give --config.latent_scale_kind=scalar"
        )
    if source.layout == "dit":
        dit.check(config)
        parts = dit.parts_of(weights_of(config, state, frozen, ema=False))
        filled, beside = dit.split(source.state, parts, dit.table(config, latent_size))
        return filled | {"latent_scale": _scale(source, config, {})}, beside
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
    compvis.check_schedule(source.state, betas)
    if "scale_factor" not in source.state:
        weights["latent_scale"] = {}
    filled, beside = compvis.split(source.state, weights)
    filled["latent_scale"] = _scale(source, config, filled["latent_scale"])
    return filled, beside


def _scale(source: Source, config: ConfigDict, found: Tree) -> np.ndarray:
    """The latent scale: the file's, else the recipe's, else 1 for VQ."""
    if "scale_factor" in source.state:
        if config.latent_scale and not np.isclose(float(found), config.latent_scale, rtol=1e-3):
            source.notes.append(f"latent scale {float(found):.5f} of the file, not the recipe's {config.latent_scale}")
        return np.asarray(found, np.float32)
    if not config.latent_scale and config.first_stage.kind == "kl":
        raise UsageError(
            "the file says no latent scale (scale_factor) and the recipe has none, without which its latents mean "
            "nothing: give the model's with --config.latent_scale=NUMBER"
        )
    return np.asarray(config.latent_scale or 1.0, np.float32)


def train_state(config: ConfigDict, abstract: Tree, weights: Tree, step: int) -> Tree:
    """TrainState of numpy arrays: the weights, no momentum, the learning rate's schedule at `step`."""

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
        variables = dict.fromkeys(abstract.variables, ema)  # further averages
    opt_state = jax.tree.map(moments, abstract.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState))
    key = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
    return abstract.replace(
        step=np.asarray(step, np.int32), params=params, ema=ema, opt_state=opt_state, variables=variables, key=key
    )


def tensors_of(
    config: ConfigDict,
    run: Path,
    state: Tree,
    weights: Tree,
    extras: bool,
    betas: np.ndarray | None = None,
    latent_size: int | None = None,
) -> dict:
    """{the original's key: ((type, shape), function that gives the array)} of a run.

    A converted run gives types and shapes as they came, and (`extras`) what had no leaf; keys that the original
    lacked stay away as long as nothing was trained. Other runs get the tables that the original keeps.
    """
    kept, metadata = read_safetensors(run / KEPT) if (run / KEPT).exists() else ({}, {})
    manifest = json.loads(metadata.get("manifest", "{}"))
    trained = int(state.step) - int(metadata.get("step", 0))
    transformer = dit.chosen(config)
    complete = bool(manifest) and metadata["layout"] == ("dit" if transformer else "compvis")
    bfloat16 = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

    def tensor(path, leaf, key):
        name, shape = manifest.get(key, ("float32", None))
        if shape is None or (extras and not complete):  # a folder of diffusers has other shapes than the original
            shape = names.torch_shape(path, leaf.shape)
        dtype = bfloat16.get(name) or np.dtype(name)
        return (dtype, tuple(shape)), lambda: names.to_torch_array(path, leaf, shape).astype(dtype, copy=False)

    leaves = tree.flatten(weights)
    keys = {path: dit.key_of(path) for path in leaves} if transformer else compvis.original_keys(weights)
    out = {key: tensor(path, leaves[path], key) for path, key in keys.items()}
    if transformer:
        return out | given({dit.POSITIONS: dit.table(config, latent_size)} | kept)
    if complete and not trained:
        out = {key: value for key, value in out.items() if key in manifest}
    elif config.task == "ldm" and "scale_factor" not in manifest and float(weights["latent_scale"]) == 1.0:
        out.pop("scale_factor", None)
    if not extras:
        return out | given(kept)
    if config.task == "ldm" and not complete:
        kept = compvis.schedule_buffers(betas) | kept
    if "ema" in weights and (trained or not complete):
        updates = int(kept.get(compvis.EMA_UPDATES, 0)) + trained
        kept[compvis.EMA_UPDATES] = np.asarray(updates, np.int32)
        kept.setdefault(compvis.EMA_DECAY, np.asarray(config.ema.decay, np.float32))
    return out | given(kept)


def kept_latents(run: Path) -> dict[str, Any]:
    """What the config.json of the autoencoder that became `run` said of its latents: settings.LATENTS."""
    if not (run / KEPT).exists():
        return {}
    metadata = read_safetensors(run / KEPT)[1]
    older = {"scaling_factor": float(metadata["scaling_factor"])} if "scaling_factor" in metadata else {}
    return older | json.loads(metadata.get("latents", "{}"))


def given(arrays: dict) -> dict:
    """Arrays in the form of `tensors_of`."""
    return {key: ((array.dtype, array.shape), lambda array=array: array) for key, array in arrays.items()}
