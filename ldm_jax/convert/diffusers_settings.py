"""Settings of diffusers' classes (config.json, scheduler_config.json): what they mean, and which are refused.

One rule: a setting that nothing here reads must have its class's default, because another value means another model. A
key that the class does not know must be null. Both are errors that name the key, the value and the file.

Facts: the classes' signatures in huggingface/diffusers 0.42 (src/diffusers/models, schedulers, pipelines).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_jax.errors import UsageError
from ldm_jax.files import mistaken

Section = Mapping[str, Any]
USUAL_KL_SCALE = 0.18215  # the classes' default, also of VQModel, for which it means nothing

_AUTOENCODER = dict(
    in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"],
    block_out_channels=[64], layers_per_block=1, act_fn="silu", norm_num_groups=32, scaling_factor=USUAL_KL_SCALE,
    mid_block_add_attention=True,
)  # fmt: skip
_UNET = dict(
    center_input_sample=False, flip_sin_to_cos=True, freq_shift=0, layers_per_block=2, mid_block_scale_factor=1,
    downsample_padding=1, act_fn="silu", attention_head_dim=8, norm_num_groups=32, norm_eps=1e-5,
    resnet_time_scale_shift="default", class_embed_type=None, num_class_embeds=None, time_embedding_type="positional",
    time_embedding_dim=None,
)  # fmt: skip
_SCHEDULER = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear",
                  trained_betas=None, prediction_type="epsilon", thresholding=False,
                  rescale_betas_zero_snr=False)  # fmt: skip
# What a class takes where its file is silent.
DEFAULTS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": _AUTOENCODER | dict(
        latent_channels=4, shift_factor=None, latents_mean=None, latents_std=None, use_quant_conv=True,
        use_post_quant_conv=True,
    ),
    "VQModel": _AUTOENCODER | dict(
        latent_channels=3, num_vq_embeddings=256, vq_embed_dim=None, norm_type="group", lookup_from_codebook=False,
    ),
    "UNet2DModel": _UNET | dict(
        in_channels=3, out_channels=3, down_block_types=["DownBlock2D", *["AttnDownBlock2D"] * 3],
        mid_block_type="UNetMidBlock2D", up_block_types=[*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        block_out_channels=[224, 448, 672, 896], downsample_type="conv", upsample_type="conv",
        attn_norm_num_groups=None, add_attention=True,
    ),
    "UNet2DConditionModel": _UNET | dict(
        in_channels=4, out_channels=4, down_block_types=[*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        mid_block_type="UNetMidBlock2DCrossAttn", up_block_types=["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        block_out_channels=[320, 640, 1280, 1280], only_cross_attention=False, cross_attention_dim=1280,
        transformer_layers_per_block=1, reverse_transformer_layers_per_block=None, encoder_hid_dim=None,
        encoder_hid_dim_type=None, num_attention_heads=None, dual_cross_attention=False, use_linear_projection=False,
        addition_embed_type=None, addition_time_embed_dim=None, resnet_skip_time_act=False,
        resnet_out_scale_factor=1.0, time_embedding_act_fn=None, timestep_post_act=None, time_cond_proj_dim=None,
        conv_in_kernel=3, conv_out_kernel=3, projection_class_embeddings_input_dim=None, attention_type="default",
        class_embeddings_concat=False, mid_block_only_cross_attention=None, cross_attention_norm=None,
        addition_embed_type_num_heads=64,
    ),
    "LDMBertModel": dict(
        vocab_size=30522, max_position_embeddings=77, encoder_layers=32, encoder_ffn_dim=5120,
        encoder_attention_heads=8, head_dim=64, activation_function="gelu", d_model=1280,
    ),
    "DDIMScheduler": _SCHEDULER | dict(clip_sample=True),
    "DDPMScheduler": _SCHEDULER | dict(clip_sample=True),
    **dict.fromkeys(
        ("PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
         "DPMSolverMultistepScheduler"),
        _SCHEDULER | dict(clip_sample=False, use_flow_sigmas=False),
    ),
}  # fmt: skip
# Settings that change no weight and no number that the networks give here: sizes of pictures, arithmetic, dropout,
# notes of the library, and how a scheduler walks, which is chosen when sampling (sample.py --sampler, --spacing).
_NETWORK_FREE = {"sample_size", "force_upcast", "upcast_attention", "dropout", "num_train_timesteps"}
_SCHEDULER_FREE = {
    "set_alpha_to_one", "steps_offset", "timestep_spacing", "skip_prk_steps", "variance_type", "clip_sample_range",
    "dynamic_thresholding_ratio", "sample_max_value", "tensor_format", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas", "interpolation_type", "sigma_min", "sigma_max", "timestep_type", "final_sigmas_type",
    "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "use_lu_lambdas",
    "flow_shift", "lambda_min_clipped", "use_dynamic_shifting", "time_shift_type",
}  # fmt: skip
# The class ignores scale_embedding and num_hidden_layers; the others are of transformers.
_BERT_FREE = {
    "architectures", "model_type", "num_hidden_layers", "scale_embedding", "dropout", "attention_dropout",
    "activation_dropout", "classifier_dropout", "encoder_layerdrop", "init_std", "use_cache", "pad_token_id",
    "torch_dtype", "dtype", "transformers_version", "chunk_size_feed_forward", "id2label", "label2id",
    "is_encoder_decoder", "output_attentions", "output_hidden_states", "problem_type", "return_dict",
    "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "tie_word_embeddings",
    "gradient_checkpointing",
}  # fmt: skip
# Read elsewhere: what becomes of latents, and whether two projections are written as convolutions of 1x1.
LATENTS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
_READ = {*LATENTS, "use_linear_projection"}
_PER_LEVEL = ("attention_head_dim", "transformer_layers_per_block", "only_cross_attention", "cross_attention_dim",
              "layers_per_block")  # fmt: skip
_WHY = {
    "use_quant_conv": "the recipe has this convolution: give --config.first_stage.use_quant_conv=False",
    "use_post_quant_conv": "the recipe has this convolution: give --config.first_stage.use_post_quant_conv=False",
    "attn_norm_num_groups": "the middle block's attention has as many groups as all other normalisation",
    "norm_eps": "the normalisation of the UNet has 1e-5",
    "clip_sample": "samplers do not clip the clean latent; where the file is silent, the class takes true",
    "thresholding": "samplers do not clip the clean latent",
    "trained_betas": "a noise schedule is given by its name, its start and its end",
    "lookup_from_codebook": "decoding takes latents, not indices of codes",
}
_READABLE = {"clip_sample": False}  # what can be read where that is not the class's default
# The condition's kind -> the class of the whole; others have no pipeline in diffusers.
PIPELINES = {"none": "LDMPipeline", "superres": "LDMSuperResolutionPipeline", "text": "LDMTextToImagePipeline"}
_PIPELINE_PARTS = {"unet", "vqvae", "vae", "bert", "tokenizer", "scheduler"}


def load(path: Path) -> dict[str, Any]:
    """The object in a JSON file. UsageError if there is none, naming a git-LFS pointer or a page as such."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {mistaken(path) or error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no settings")
    return found


def meaning(kind: str, found: Section) -> dict[str, Any]:
    """The settings of a class with its defaults where `found` is silent, in one way of writing them.

    vq_embed_dim null is latent_channels, a list of equal numbers is that number, swish is silu.
    """
    full = DEFAULTS[kind] | dict(found)
    if "vq_embed_dim" in full and full["vq_embed_dim"] is None:
        full["vq_embed_dim"] = full["latent_channels"]
    if full.get("act_fn") == "swish":
        full["act_fn"] = "silu"
    if full.get("attn_norm_num_groups") == full.get("norm_num_groups"):
        full["attn_norm_num_groups"] = None
    for name in _PER_LEVEL:
        value = full.get(name)
        if isinstance(value, list) and value and all(part == value[0] for part in value):
            full[name] = value[0]
    return full


def check(file: Path, found: Section, kind: str, ours: Section) -> None:
    """UsageError unless `found` (the settings in `file` of a class) are those of our component, `ours`."""
    theirs, wanted = meaning(kind, found), meaning(kind, ours)
    free = _BERT_FREE if kind == "LDMBertModel" else _NETWORK_FREE
    compared = {name: value for name, value in ours.items() if name not in free | _READ}
    wrong = [
        f"    {name}: {_shown(theirs.get(name))} in the folder, {_shown(wanted[name])} by the config"
        for name in compared
        if not same(theirs.get(name), wanted[name])
    ]
    if wrong:
        raise UsageError(f"{file.parent} holds another {kind} than the config's:\n" + "\n".join(wrong))
    elsewhere = _READ - (set(LATENTS) - DEFAULTS[kind].keys())  # a VQModel has no shift
    check_unknown(file, theirs, kind, free | elsewhere | compared.keys())


def check_unknown(file: Path, theirs: Section, kind: str, known: set[str]) -> None:
    """UsageError for settings of a class, `theirs`, that are not `known` and have not its default."""
    wrong = []
    for name, value in theirs.items():
        default = _READABLE.get(name, DEFAULTS[kind].get(name))
        if not (name.startswith("_") or name in known or same(value, default)):
            why = f"; {_WHY[name]}" if name in _WHY else ""
            wrong.append(f"    {name}: {_shown(value)}, only {_shown(default)} can be read{why}")
    if wrong:
        raise UsageError(
            f"{file} has settings of {kind} that nothing here follows:\n"
            + "\n".join(wrong)
            + "\nOther values mean another model. Where one does not matter for your model, remove it from the file or "
            "set it to the readable value"
        )


def check_scheduler(file: Path, found: Section, expected: Section) -> None:
    """UsageError when the noise schedule in `file` is not `expected`, the scheduler_config.json of config.diffusion."""
    kind = scheduler_kind(file, found)
    theirs = meaning(kind, found)
    names = ["num_train_timesteps", "beta_schedule", "prediction_type", "rescale_betas_zero_snr"]
    if theirs["beta_schedule"] != "squaredcos_cap_v2":
        names += ["beta_start", "beta_end"]
    wanted = DEFAULTS[kind] | dict(expected)
    wrong = [
        f"    {name}: {_shown(theirs[name])} in the folder, {_shown(wanted[name])} by the config"
        for name in names
        if not same(theirs[name], wanted[name])
    ]
    if wrong:
        raise UsageError(f"{file} has another noise schedule than the config:\n" + "\n".join(wrong))
    check_unknown(file, theirs, kind, _SCHEDULER_FREE | {*names, "beta_start", "beta_end"})


def scheduler_kind(file: Path, found: Section) -> str:
    """The class of a scheduler. UsageError if it is none of those whose noise schedule is known."""
    kind = found.get("_class_name")
    schedulers = [name for name in DEFAULTS if name.endswith("Scheduler")]
    if kind not in schedulers:
        raise UsageError(f"{file} has _class_name: {_shown(kind)}; these are read: {', '.join(schedulers)}")
    return kind


def check_index(file: Path) -> None:
    """UsageError when model_index.json is that of another pipeline than the three of latent diffusion."""
    found = load(file)
    kind = found.get("_class_name")
    if kind not in PIPELINES.values():
        raise UsageError(
            f"{file} has _class_name: {_shown(kind)}; these pipelines are read: {', '.join(PIPELINES.values())}. The "
            "autoencoder alone can be taken out of any of them: give --from its folder"
        )
    for name, value in found.items():
        if not name.startswith("_") and name not in _PIPELINE_PARTS and value not in (None, [None, None]):
            raise UsageError(f"{file} has {name}: {_shown(value)}; the parts that are read: {sorted(_PIPELINE_PARTS)}")


def same(a: Any, b: Any) -> bool:
    """Whether two settings are equal; numbers to 1e-6."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b


def _shown(value: Any) -> str:
    """As in the file; long ones are cut."""
    text = json.dumps(value) if not isinstance(value, tuple) else json.dumps(list(value))
    return text if len(text) <= 200 else f"{text[:200]}..."
