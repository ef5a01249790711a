"""Folders of the `diffusers` library: VQModel, AutoencoderKL, UNet2DModel, UNet2DConditionModel, LDMBertModel.

A folder holds a component each (unet/, vqvae/, bert/, scheduler/), or is itself an autoencoder. Keys translate to
the original's (compvis.py) by name; only the UNet's qkv of plain attention is cut into three. One direction of the
names is written here; reading looks the same names up.

Facts about names, classes and defaults: huggingface/diffusers, src/diffusers/models and its LDM conversion script.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.convert import diffusers_settings as settings
from ldm_jax.convert.compvis import CONDITIONER, UNET
from ldm_jax.convert.diffusers_settings import PIPELINES, USUAL_KL_SCALE, Section
from ldm_jax.convert.safetensors_file import Spec, read_safetensors, write_safetensors
from ldm_jax.convert.torch_reader import read_torch
from ldm_jax.errors import Missing, UsageError

Tensors = Mapping[str, tuple[Spec, Callable[[], np.ndarray]]]
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = ("safetensors", "bin")
VARIANTS = ("fp16", "bf16")  # read where there is no full file
FOLDERS = {"vqvae": ("vqvae", "vae"), "unet": ("unet",), "bert": ("bert",)}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
# Of a scheduler_config.json: the spacing that begins at the last training step, as diffusers' default does not.
_FROM_PURE_NOISE = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True)
VERSION = "0.30.0"  # stands in the files that we write


@dataclass(frozen=True)
class Component:
    """One model: its folder, class and config.json, and {the original's key: its key, or those of q, k and v}.

    heads: of a qkv, by the original's key; new_order: how these are laid out (models/attention.py).
    """

    folder: str
    kind: str
    config: dict[str, Any]
    keys: dict[str, tuple[str, ...]]
    heads: dict[str, int]
    new_order: bool = False


def autoencoder(section: Section, shapes: Mapping[str, tuple[int, ...]], prefix: str, scale: float) -> Component:
    """The first stage of config.first_stage `section`; `shapes` by the original's key, which begins with `prefix`.

    Raises UsageError for what neither class can express.
    """
    vq = section["kind"] == "vq"
    if section.get("patch", 1) != 1:
        raise UsageError(f"diffusers has no autoencoders of pixel patches (first_stage.patch={section['patch']})")
    if section["attn_type"] == "linear":
        raise UsageError("diffusers has no linear attention in its autoencoders (first_stage.attn_type='linear')")
    if not vq and section["embed_dim"] != section["z_channels"]:
        raise UsageError(
            f"diffusers' AutoencoderKL has one number of latent channels; here embed_dim={section['embed_dim']} and "
            f"z_channels={section['z_channels']}"
        )
    levels = len(section["ch_mult"])
    own = [key for key in shapes if key.startswith(prefix) and not key.startswith(f"{prefix}loss.")]
    keys = {key: (_autoencoder_key(key.removeprefix(prefix), levels),) for key in own}
    attends = [f"{prefix}encoder.down.{level}.attn.0.norm.weight" in shapes for level in range(levels)]
    config = dict(
        in_channels=section["in_channels"],
        out_channels=section["out_channels"],
        down_block_types=["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        up_block_types=["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        block_out_channels=[section["ch"] * m for m in section["ch_mult"]],
        layers_per_block=section["num_res_blocks"],
        act_fn="silu",
        latent_channels=section["z_channels"],
        sample_size=section["resolution"],
        norm_num_groups=section.get("norm_groups", 32),
        **latents_config(scale),
    )
    if section["attn_type"] == "none":
        config["mid_block_add_attention"] = False
    without = {name: False for name in ("use_quant_conv", "use_post_quant_conv") if not section.get(name, True)}
    if without and vq:
        raise UsageError(f"diffusers' VQModel has both of its 1x1 convolutions; here first_stage.{min(without)}=False")
    config |= without
    if vq:
        config |= dict(num_vq_embeddings=section["n_embed"], vq_embed_dim=section["embed_dim"])
    return Component("vqvae", "VQModel" if vq else "AutoencoderKL", config, keys, {})


def _autoencoder_key(key: str, levels: int) -> str:
    key = re.sub(r"decoder\.up\.(\d+)", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", key)
    key = key.replace("encoder.down.", "encoder.down_blocks.").replace(".mid.attn_1.", ".mid_block.attentions.0.")
    key = key.replace(".mid.block_1.", ".mid_block.resnets.0.").replace(".mid.block_2.", ".mid_block.resnets.1.")
    key = key.replace(".block.", ".resnets.").replace(".attn.", ".attentions.")
    key = key.replace(".downsample.", ".downsamplers.0.").replace(".upsample.", ".upsamplers.0.")
    key = key.replace(".norm_out.", ".conv_norm_out.").replace(".nin_shortcut.", ".conv_shortcut.")
    head, part, rest = re.match(r"(.*\.attentions\.\d+\.|)(\w+)(.*)", key).groups()
    return head + (_ATTENTION.get(part, part) if head else part) + rest


_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
           "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip

_UNET_ENDS = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
              "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}  # fmt: skip


def unet(section: Section, shapes: Mapping[str, tuple[int, ...]], context_dim: int | None, size: int) -> Component:
    """The UNet of config.unet `section` on latents of `size`. Raises UsageError for what neither class can express."""
    if section.get("context", "cross_attention") != "cross_attention":
        raise UsageError(
            f"diffusers has no UNet that takes a context in its time embedding (unet.context='{section['context']}')"
        )
    head_width, spatial = section["num_head_channels"], section["use_spatial_transformer"]
    if section["resblock_updown"] or section["use_scale_shift_norm"]:
        raise UsageError("diffusers' UNets cannot express unet.resblock_updown or unet.use_scale_shift_norm")
    if head_width == -1 and not spatial:
        raise UsageError(
            f"diffusers' UNet2DModel has heads of one width; here unet.num_heads={section['num_heads']} at every level"
        )
    layers, mult = section["num_res_blocks"], section["channel_mult"]
    attends = [2**level in section["attention_downsamples"] for level in range(len(mult))]
    widths = [section["model_channels"] * m for m in mult]
    cross = "CrossAttn" if spatial else "Attn"
    config = dict(
        sample_size=size,
        in_channels=shapes[f"{UNET}input_blocks.0.0.weight"][1],
        out_channels=section["out_channels"],
        center_input_sample=False,
        flip_sin_to_cos=True,
        freq_shift=0,
        down_block_types=[f"{cross if a else ''}DownBlock2D" for a in attends],
        up_block_types=[f"{cross if a else ''}UpBlock2D" for a in reversed(attends)],
        block_out_channels=widths,
        layers_per_block=layers,
        downsample_padding=1,
        mid_block_scale_factor=1,
        act_fn="silu",
        norm_num_groups=section.get("norm_groups", 32),
        norm_eps=1e-5,
        attention_head_dim=head_width,
    )
    if spatial:
        heads = section["num_heads"] if head_width == -1 else [w // head_width for w in widths]
        config |= dict(attention_head_dim=heads, cross_attention_dim=context_dim)
        if section.get("transformer_depth", 1) != 1:
            config["transformer_layers_per_block"] = section["transformer_depth"]
    keys, qkv_heads = {}, {}
    for key in (key for key in shapes if key.startswith(UNET)):
        name = _unet_key(key.removeprefix(UNET), layers, spatial)
        if ".qkv." in name:
            keys[key] = tuple(name.replace("qkv", f"to_{part}") for part in "qkv")
            qkv_heads[key] = shapes[key][0] // 3 // head_width
        else:
            keys[key] = (name,)
    kind = "UNet2DConditionModel" if spatial else "UNet2DModel"
    return Component("unet", kind, config, keys, qkv_heads, section.get("use_new_attention_order", False))


def _unet_key(key: str, layers: int, spatial: bool) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    side, block, part, rest = re.fullmatch(r"(input|middle|output)_blocks?\.(?:(\d+)\.)?(\d+)\.(.*)", key).groups()
    if side == "middle":
        return f"mid_block.attentions.0.{_attention(rest, spatial)}" if part == "1" else (
            f"mid_block.resnets.{int(part) // 2}.{_resnet(rest)}"
        )  # fmt: skip
    level, i = divmod(int(block) - (side == "input"), layers + 1)
    where = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{where}.downsamplers.0.conv.{rest[3:]}"
    if part != "0" and rest.startswith("conv."):
        return f"{where}.upsamplers.0.{rest}"
    if part == "0":
        return f"{where}.resnets.{i}.{_resnet(rest)}"
    return f"{where}.attentions.{i}.{_attention(rest, spatial)}"


def _resnet(rest: str) -> str:
    name, leaf = rest.rsplit(".", 1)
    return f"{_RESNET[name]}.{leaf}"


def _attention(rest: str, spatial: bool) -> str:
    if spatial:
        return rest
    name, leaf = rest.rsplit(".", 1)
    return f"{_ATTENTION.get(name, name)}.{leaf}"


def bert(section: Section, shapes: Mapping[str, tuple[int, ...]]) -> Component:
    """The text encoder of config.conditioner `section`, with the vocabulary head that the class has."""
    root = f"{CONDITIONER}transformer."
    own = {key for key in shapes if key.startswith(root)} | {f"{root}to_logits.{leaf}" for leaf in ("weight", "bias")}
    keys = {key: (_bert_key(key.removeprefix(root)),) for key in sorted(own)}
    dim = section["dim"]
    config = dict(
        architectures=["LDMBertModel"], model_type="ldmbert", vocab_size=section["vocab_size"], d_model=dim,
        max_position_embeddings=section["max_length"], encoder_layers=section["depth"], encoder_ffn_dim=4 * dim,
        encoder_attention_heads=8, head_dim=64, activation_function="gelu", scale_embedding=False, pad_token_id=0,
    )  # fmt: skip
    return Component("bert", "LDMBertModel", config, keys, {})


def _bert_key(key: str) -> str:
    fixed = {"token_emb": "model.embed_tokens", "pos_emb.emb": "model.embed_positions", "norm": "model.layer_norm"}
    head, leaf = key.rsplit(".", 1)
    match = re.fullmatch(r"attn_layers\.layers\.(\d+)\.([01])(?:\.(.*))?", head)
    if not match:
        return f"{fixed.get(head, head)}.{leaf}"
    layer, mlp = divmod(int(match[1]), 2)
    if match[2] == "0":
        part = "final_layer_norm" if mlp else "self_attn_layer_norm"
    elif mlp:
        part = {"net.0.0": "fc1", "net.2": "fc2"}[match[3]]
    else:
        part = f"self_attn.{match[3].replace('to_', '')}_proj"
    return f"model.layers.{layer}.{part}.{leaf}"


def split_qkv(array: np.ndarray, heads: int, new_order: bool) -> list[np.ndarray]:
    """[3C,C,1] or [3C] -> q, k, v, each [C,C] or [C]."""
    width = array.shape[0] // 3
    order = (3, heads, width // heads, -1) if new_order else (heads, 3, width // heads, -1)
    parts = np.moveaxis(array.reshape(order), 0 if new_order else 1, 0)
    return [np.ascontiguousarray(part.reshape((width, width) if array.ndim > 1 else width)) for part in parts]


def join_qkv(parts: list[np.ndarray], heads: int, new_order: bool) -> np.ndarray:
    """q, k, v [C,C] or [C] -> [3C,C,1] or [3C], the inverse of `split_qkv`."""
    width = parts[0].shape[0]
    stacked = np.stack([part.reshape(heads, width // heads, -1) for part in parts], 0 if new_order else 1)
    return stacked.reshape((3 * width, width, 1) if parts[0].size != width else 3 * width)


# Reading


def read_folder(
    path: str | Path, wanted: list[Component], diffusion: Section | None = None
) -> tuple[dict[str, np.ndarray], dict[str, dict], list[str]]:
    """(state dict with the original's keys, {folder: its config.json}, notes for the user) of the components in `path`.

    What a component has beyond the wanted keys is kept as "<folder>/<key>". diffusion: config.diffusion, which the
    folder's scheduler must fit. Raises UsageError when a component is missing, damaged, of another class or of other
    numbers.
    """
    path = Path(path)
    state: dict[str, np.ndarray] = {}
    configs: dict[str, dict] = {}
    notes: list[str] = []
    if len(wanted) > 1 and (path / "model_index.json").exists():
        settings.check_index(path / "model_index.json")
    for component in wanted:
        folder = _folder_of(path, component)
        configs[component.folder] = settings.load(folder / "config.json")
        settings.check(folder / "config.json", configs[component.folder], component.kind, component.config)
        found, note = _tensors(folder)
        notes += note
        tensors = {_new_name(k): v for k, v in found.items()}
        for key, names in component.keys.items():
            if all(name in tensors for name in names):
                parts = [tensors.pop(name) for name in names]
                state[key] = parts[0] if len(parts) == 1 else join_qkv(
                    [p.reshape(p.shape[:2]) for p in parts], component.heads[key], component.new_order
                )  # fmt: skip
        state |= {f"{component.folder}/{key}": array for key, array in tensors.items() if key != _POSITION_IDS}
    scheduler = path / "scheduler" / "scheduler_config.json"
    if diffusion is not None and scheduler.exists():
        settings.check_scheduler(scheduler, settings.load(scheduler), scheduler_config(diffusion))
    return state, configs, notes


_POSITION_IDS = "model.embeddings.position_ids"


def _new_name(key: str) -> str:
    """Keys of attention had other names before diffusers 0.15."""
    match = re.fullmatch(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)\.(\w+)", key)
    return f"{match[1]}{OLD_ATTENTION[match[2]]}.{match[3]}" if match else key


def _folder_of(path: Path, component: Component) -> Path:
    for folder in (*(path / name for name in FOLDERS[component.folder]), path):
        if (folder / "config.json").is_file() and settings.load(folder / "config.json").get("_class_name") in (
            component.kind, *((None,) if component.kind == "LDMBertModel" and folder != path else ()),
        ):  # fmt: skip
            return folder
    raise UsageError(
        f"{path} holds no {component.kind}, which this config needs, in {component.folder}/ with a config.json of "
        f"that _class_name; it holds {', '.join(sorted(p.name for p in path.iterdir())) or 'nothing'}"
    )


def _tensors(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """(tensors of the first set of weights that is there, notes of what was chosen). Full files come before variants,
    and a file before the index of several."""
    tried = []
    for variant in ("", *VARIANTS):
        for stem, ending in ((stem, ending) for ending in ENDINGS for stem in STEMS):
            name = f"{stem}.{variant}.{ending}" if variant else f"{stem}.{ending}"
            index = f"{stem}.{ending}.index.{variant}.json" if variant else f"{stem}.{ending}.index.json"
            tried += [name, index]
            note = [f"{folder.name}: the weights of {name}, {variant}; there is no full file"] if variant else []
            if (folder / name).is_file():
                return _read_weights(folder / name), note
            if (folder / index).is_file():
                return _shards(folder, index), note
    raise UsageError(f"{folder} holds no weights; looked for {', '.join(tried)}")


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    return dict(read_safetensors(path)[0]) if path.suffix == ".safetensors" else read_torch(path)


def _shards(folder: Path, index: str) -> dict[str, np.ndarray]:
    """The tensors of several files, of which an index says which key is where. UsageError for what is not there."""
    places = settings.load(folder / index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UsageError(f'{folder / index} has no "weight_map" of keys and files')
    out: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        if name in ("", ".", "..") or Path(name).name != name:
            raise UsageError(f"{folder / index} names {name[:100]!r}, which is no file beside it")
        if not (folder / name).is_file():
            raise Missing(
                f"{folder / name}, which {index} names, is not there: download the folder again, with all files"
            )
        found = _read_weights(folder / name)
        keys = [key for key, place in places.items() if place == name]
        missing = [key for key in keys if key not in found]
        if missing:
            raise UsageError(
                f"{folder / name} lacks {len(missing)} tensors that {index} names, first {missing[0][:100]}"
            )
        out |= {key: found[key] for key in keys}
    return out


def scale_of(config: Section) -> float | None:
    """The latent scale that an autoencoder's config.json states; None where it states nothing of meaning."""
    found = config.get("scaling_factor")
    if not (found is None or isinstance(found, int | float)) or found == 0:
        raise UsageError(f"the autoencoder's config.json has scaling_factor {str(found)[:40]!r}; it must be a number")
    if config.get("_class_name") == "VQModel":
        return None if found in (None, USUAL_KL_SCALE) else float(found)
    return float(USUAL_KL_SCALE if found is None else found)


def channels_of(file: Path, config: Section) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(shift, scale) of each latent channel, or of all in one number, as an autoencoder's config.json states them:
    z = (latent - shift) * scale. None where it states one scale and no more. UsageError for settings without a meaning.
    """
    shift, mean, std = (config.get(name) for name in settings.LATENTS[1:])
    if shift is None and mean is None and std is None:
        return None
    scale, wanted = scale_of(config) or 1.0, config.get("latent_channels", 4)
    if shift is not None and mean is None and std is None and _are_numbers([shift]):
        return (float(shift),), (scale,)
    each = isinstance(mean, list) and isinstance(std, list) and _are_numbers([*mean, *std]) and 0 not in std
    if shift is not None or not each or not len(mean) == len(std) == wanted:
        told = ", ".join(f"{name}: {str(config.get(name))[:60]}" for name in settings.LATENTS[1:])
        raise UsageError(
            f"{file} has {told}; what can be read is shift_factor, a number, or latents_mean and latents_std, "
            f"{wanted} numbers each"
        )
    return tuple(float(x) for x in mean), tuple(scale / x for x in std)


def _are_numbers(values: list) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in values)


def latents_config(scale: float | np.ndarray, shift: np.ndarray | None = None) -> dict[str, Any]:
    """What a config.json says of latents: one scale, with one shift, or a shift and a scale [c] for each channel."""
    scales, shifts = np.ravel(np.float32(scale)), np.ravel(np.float32(0.0 if shift is None else shift))
    if shift is None:
        return dict(scaling_factor=_short(scales[0]))
    if len({*scales}) == len({*shifts}) == 1:
        return dict(scaling_factor=_short(scales[0]), shift_factor=_short(shifts[0]))
    mean, std = ([_short(x) for x in values] for values in (shifts, 1 / scales))
    return dict(scaling_factor=1.0, latents_mean=mean, latents_std=std)


def _short(number: np.float32) -> float:
    """0.18215 rather than all digits of its float32."""
    return float(str(np.float32(number)))


def scheduler_config(diffusion: Section) -> dict:
    """scheduler_config.json of config.diffusion. Raises UsageError for a schedule that diffusers has not."""
    if diffusion.get("kind") == "flow":
        raise UsageError("config.diffusion.kind='flow': a folder of diffusers is written of diffusion models alone")
    if diffusion["schedule"] not in SCHEDULES:
        raise UsageError(f"diffusers has no noise schedule {diffusion['schedule']!r}")
    return dict(
        _class_name="DDIMScheduler",
        _diffusers_version=VERSION,
        num_train_timesteps=diffusion["timesteps"],
        beta_start=diffusion["start"],
        beta_end=diffusion["end"],
        beta_schedule=SCHEDULES[diffusion["schedule"]],
        prediction_type=PREDICTIONS[diffusion["prediction"]],
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ) | (_FROM_PURE_NOISE if diffusion.get("zero_terminal_snr") else {})


# Writing


def write_component(path: Path, component: Component, tensors: Tensors) -> None:
    """config.json and the weights, in `path`. Keys without tensors are filled with zeros (the vocabulary head).

    The projections of transformers keep the shape that they came with, as linear layers or as convolutions of 1x1.
    """
    path.mkdir(parents=True, exist_ok=True)
    head = {} if component.kind == "LDMBertModel" else {"_class_name": component.kind, "_diffusers_version": VERSION}
    linear = {"use_linear_projection": True} if _linear_projections(component, tensors) else {}
    (path / "config.json").write_text(json.dumps(head | component.config | linear, indent=2) + "\n")
    out: dict[str, tuple[Spec, Callable[[], np.ndarray]]] = {}
    for key, names in component.keys.items():
        (dtype, shape), give = tensors.get(key) or _zeros(key, component)
        for i, name in enumerate(names):
            if len(names) == 3:
                part = (shape[0] // 3, *((shape[1],) if len(shape) > 1 else ()))
                out[name] = ((dtype, part), _Part(give, i, component.heads[key], component.new_order))
            else:
                flat = (".attentions." in name and component.folder != "unet") or ".to_out.0." in name
                shape = shape[:2] if flat or name.endswith("proj_attn.weight") else shape
                out[name] = ((dtype, shape), _Reshaped(give, shape))
    weights = "model.safetensors" if component.kind == "LDMBertModel" else "diffusion_pytorch_model.safetensors"
    write_safetensors(path / weights, out, {"format": "pt"})


def _linear_projections(component: Component, tensors: Tensors) -> bool:
    """Whether proj_in and proj_out around the transformers of a UNet2DConditionModel are linear layers."""
    first = next((key for key in component.keys if key.endswith(".proj_in.weight") and key in tensors), None)
    return component.kind == "UNet2DConditionModel" and first is not None and len(tensors[first][0][1]) == 2


def check_pipeline(components: list[Component], conditioner: str) -> list[str]:
    """Notes on how the pipeline of diffusers draws a model. UsageError where it would draw it wrongly."""
    parts = {component.folder: component.config for component in components}
    scale, channels = parts["vqvae"]["scaling_factor"], parts["vqvae"]["latent_channels"]
    if conditioner == "superres":
        instead = "Write a .ckpt or .safetensors instead, for example --to model.safetensors"
        if scale != 1:
            raise UsageError(
                f"diffusers' {PIPELINES[conditioner]} ignores the latent scale; here it is {scale}, and its pictures "
                f"would be wrong. {instead}"
            )
        if channels != 3:
            raise UsageError(
                f"diffusers' {PIPELINES[conditioner]} takes half of the UNet's input channels for the latent, which "
                f"must have 3 as the picture has; here it has {channels}. {instead}"
            )
    f = 2 ** (len(parts["vqvae"]["block_out_channels"]) - 1)
    if conditioner == "text" and f != 8:
        return [f"diffusers' {PIPELINES[conditioner]} takes f = 8; here f = {f}: give it height and width times 8/{f}"]
    return []


def _zeros(key: str, component: Component) -> tuple[Spec, Callable[[], np.ndarray]]:
    vocabulary, dim = component.config["vocab_size"], component.config["d_model"]
    shape = (vocabulary, dim) if key.endswith("weight") else (vocabulary,)
    return (np.dtype(np.float32), shape), lambda: np.zeros(shape, np.float32)


@dataclass(frozen=True)
class _Reshaped:
    give: Callable[[], np.ndarray]
    shape: tuple[int, ...]

    def __call__(self) -> np.ndarray:
        return self.give().reshape(self.shape)


@dataclass(frozen=True)
class _Part:
    give: Callable[[], np.ndarray]
    i: int
    heads: int
    new_order: bool

    def __call__(self) -> np.ndarray:
        return split_qkv(self.give(), self.heads, self.new_order)[self.i]


def write_pipeline(path: Path, components: list[Component], conditioner: str, diffusion: Section) -> None:
    """model_index.json and scheduler/ beside the components."""
    folder = path / "scheduler"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler_config(diffusion), indent=2) + "\n")
    index = {"_class_name": PIPELINES[conditioner], "_diffusers_version": VERSION}
    index |= {c.folder: ["latent_diffusion" if c.folder == "bert" else "diffusers", c.kind] for c in components}
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    if conditioner == "text":
        index["tokenizer"] = ["transformers", "BertTokenizer"]
    (path / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
