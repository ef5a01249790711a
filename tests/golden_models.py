"""Goldens of whole models: UNets, first stages and conditioners, at any size; options told from the weights."""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import tree
from ldm_jax.conditioners import ClassEmbedder, SpatialRescaler
from ldm_jax.convert.names import torch_key
from ldm_jax.models.autoencoder import AutoencoderKL, VQModel
from ldm_jax.models.layers import Dense, timestep_embedding
from ldm_jax.models.unet import UNet
from tests.golden_modules import autoencoder_fields, numbers, text_encoder
from tests.golden_tools import (
    Case,
    MadeUpState,
    Ours,
    UnsupportedError,
    lazy_state,
    nchw,
    nhwc,
    restore,
    run_once,
)

UNET, CONDITIONER = "model.diffusion_model.", "cond_stage_model."
# Heads of the released models, which no weight tells: the first name found in a case's manifest or config.
HEADS = (
    ("cin256-v2", {"num_heads": 1}),
    ("1p4B", {"num_heads": 8, "legacy": False}),
    ("churches", {"num_heads": 8}),
    ("inpainting", {"num_heads": 8}),
    ("semantic", {"num_heads": 8}),
    ("", {"num_head_channels": 32}),
)
NEAR_TIE = 1e-4  # a code is one of two equally near ones when their squared distances differ by less


def unet_fields(shapes) -> dict:
    """Fields of our UNet for the shapes of its state dict, all but the heads and the context."""
    width = shapes["input_blocks.0.0.weight"][0]
    inputs, outputs = numbers(shapes, "input_blocks."), numbers(shapes, "output_blocks.")
    blocks = len(outputs)
    # The n-th input block halves the size when it is a convolution, or a mean (without weights: a gap), ...
    halving = [n for n in range(blocks) if n not in inputs or f"input_blocks.{n}.0.op.weight" in shapes]
    doubling = [n for n in outputs if any(f"output_blocks.{n}.{i}.in_layers.0.weight" in shapes for i in (1, 2))]
    levels = 1 + (len(halving) or len(doubling))  # ... or a residual block, as then those that double
    per_level = blocks // levels
    starts = [1 + level * per_level for level in range(levels)]
    attends = [f"input_blocks.{n}.1.norm.weight" in shapes for n in starts]
    wide = [shapes[f"input_blocks.{n}.0.out_layers.3.weight"][0] for n in starts]
    first = "input_blocks.1.0."
    return dict(
        model_channels=width,
        out_channels=shapes["out.2.weight"][0],
        num_res_blocks=per_level - 1,
        channel_mult=tuple(w // width for w in wide),
        attention_downsamples=tuple(2**level for level in range(levels) if attends[level]),
        use_spatial_transformer="middle_block.1.proj_in.weight" in shapes,
        transformer_depth=len(numbers(shapes, "middle_block.1.transformer_blocks.")) or 1,
        use_scale_shift_norm=shapes[first + "emb_layers.1.weight"][0] == 2 * wide[0],
        resblock_updown=bool(doubling),
        conv_resample=bool(doubling) or any(key.endswith(".op.weight") for key in shapes) or levels == 1,
        num_classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        n_embed=shapes["id_predictor.1.weight"][0] if "id_predictor.1.weight" in shapes else None,
    )


def context_width(shapes) -> int:
    """Width of the context that a UNet's transformers were made for."""
    return shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]


def run_small_unet(case: Case) -> dict[str, Ours]:
    """eps, eps_small, the gradient to z of mean(eps * g), and the norms of those to the parameters."""
    kwargs, state = case.meta.get("kwargs", {}), lazy_state(case)
    fields = unet_fields(state.shapes)
    heads = {k: kwargs[k] for k in ("num_heads", "num_head_channels", "legacy") if kwargs.get(k, -1) != -1}
    context, y = (jnp.asarray(case.inputs[k]) if k in case.inputs else None for k in ("context", "y"))
    width = None if context is None else context.shape[-1]
    new_order = kwargs.get("use_new_attention_order", False)
    module = UNet(**fields, **heads, context_dim=width, use_new_attention_order=new_order)
    if module.n_embed is not None:  # the original keeps an output head that it does not use then
        state = state.without("out.")
    t = jnp.asarray(case.inputs["t"])
    images = {k: jnp.asarray(nhwc(v)) for k, v in case.inputs.items() if k == "g" or k[0] == "x"}
    params = restore(module, state, images["x"], t, context, y=y)["params"]

    def both(params, z, small, g):
        eps, pull_back = jax.vjp(lambda p, z: module.apply({"params": p}, z, t, context, y=y), params, z)
        grads, grad_z = pull_back(g / g.size)
        norms = {path: jnp.linalg.norm(grad) for path, grad in tree.flatten(grads).items()}
        small = None if small is None else module.apply({"params": params}, small, t, context, y=y)
        return eps, small, grad_z, norms

    g = images.get("g")
    g = jnp.ones((*images["x"].shape[:3], fields["n_embed"] or fields["out_channels"])) if g is None else g
    eps, small, grad_z, norms = run_once(both, params, images["x"], images.get("x_small"), g)
    ours = {"eps": Ours(nchw(eps)), "grad_x": Ours(nchw(grad_z))}
    if small is not None:
        ours["eps_small"] = Ours(nchw(small))
    check_gradient_norms(case, norms)
    return ours


def check_gradient_norms(case: Case, norms: dict) -> None:
    """Raises ValueError where the norm of a parameter's gradient is not the recorded one within 1e-3.

    Some exact gradients are zero (a bias before a norm): their round-off is compared to the largest.
    """
    recorded = {k: v for k, v in case.meta.get("extra", {}).get("grad_norms", {}).items() if v is not None}
    largest = max(recorded.values(), default=0.0)
    for path, norm in norms.items():
        expected = recorded.get(torch_key(path))
        if expected is not None and abs(float(norm) - expected) > 1e-3 * expected + 1e-6 * largest:
            raise ValueError(f"norm of the gradient to {path}: {float(norm)}, golden {expected}")


@dataclass(frozen=True)
class Told:
    """What a UNet is told: context [B,L,D] and concat [B,h,w,C], and outputs of the case on the way."""

    context: jax.Array | None
    concat: jax.Array | None
    outputs: dict[str, Ours]


def run_unet(case: Case) -> dict[str, Ours]:
    """A released UNet: eps, t_emb, and what its conditioner made, if the case has one."""
    state = lazy_state(case, UNET)
    told = conditioning(case, state.shapes["input_blocks.0.0.weight"][1])
    where = f"{case.meta['manifest']} {case.meta.get('config', '')}"
    heads = next(heads for part, heads in HEADS if part in where)
    fields = unet_fields(state.shapes)
    if told.context is None and fields["use_spatial_transformer"]:
        raise UnsupportedError("a UNet with transformers, and nothing in the case's inputs to be its context")
    width = None if told.context is None else told.context.shape[-1]
    module = UNet(**fields, **heads, context_dim=width)
    z, t = jnp.asarray(nhwc(case.inputs["x"])), jnp.asarray(case.inputs["t"])
    z = z if told.concat is None else jnp.concatenate([z, told.concat], axis=-1)
    variables = restore(module, state, z, t, told.context)
    eps = run_once(module.apply, variables, z, t, told.context)
    embedded = timestep_embedding(t, module.model_channels)
    return {"eps": Ours(nchw(eps)), "t_emb": _embedding(embedded)} | told.outputs


def _embedding(value) -> Ours:
    reason = "its argument reaches 999 radians, of which one float32 step is 6e-5"
    return Ours(np.asarray(value), tolerance=2e-4, reason=reason)


def conditioning(case: Case, channels: int) -> Told:
    """What the case's inputs say to a UNet of that many input channels."""
    inputs = case.inputs
    prefixes = case.meta.get("weight_prefixes", ())
    context = next((jnp.asarray(inputs[k]) for k in ("context", "c_crossattn") if k in inputs), None)
    if CONDITIONER in prefixes and context is None:
        ours = run_conditioner(case)
        value = {key: jnp.asarray(v.value) for key, v in ours.items()}
        if "context" in value or "z" in value:
            return Told(value.get("context", value.get("z")), None, ours)
        return Told(None, jnp.asarray(nhwc(value["c_concat"])), ours)
    missing = channels - inputs["x"].shape[1]
    beside = [nhwc(v) for k, v in inputs.items()
              if k != "x" and v.ndim == 4 and v.shape[2:] == inputs["x"].shape[2:]]  # fmt: skip
    if sum(v.shape[-1] for v in beside) != missing:
        raise UnsupportedError(f"{missing} channels beside x needed, found {[v.shape for v in beside]}")
    concat = jnp.asarray(np.concatenate(beside, axis=-1)) if missing else None
    return Told(context, concat, {})


def run_conditioner(case: Case) -> dict[str, Ours]:
    """A conditioner of a released model: labels, semantic maps or tokens to what the UNet is told."""
    state = lazy_state(case, CONDITIONER)
    if "embedding.weight" in state:
        labels = jnp.asarray(case.inputs.get("class_label", case.inputs.get("label")))
        module, batch = ClassEmbedder(*state.shapes["embedding.weight"]), {"label": labels}
        cond = module.apply(restore(module, state, batch, None), batch, None)
        return {"context": Ours(np.asarray(cond.context))}
    if "transformer.token_emb.weight" in state:
        return _run_text_encoder(case)
    if "channel_mapper.weight" in state:
        return _run_rescaler(case, state)
    raise UnsupportedError(f"no conditioner of ours has weights like {sorted(state)[:3]}")


def _run_rescaler(case: Case, state: MadeUpState) -> dict[str, Ours]:
    maps = {k: {k.split("_")[0]: jnp.asarray(nhwc(v))} for k, v in case.inputs.items() if k.startswith("segmentation")}
    height = maps["segmentation"]["segmentation"].shape[1]
    stages = round(np.log2(height / case.meta["outputs"]["c_concat"]["shape"][2]))
    out_channels, classes = state.shapes["channel_mapper.weight"][:2]
    module = SpatialRescaler(classes, out_channels, stages)
    variables = restore(module, state, maps["segmentation"], None)
    conds = {key: module.apply(variables, batch, None) for key, batch in maps.items()}
    return {key.replace("segmentation", "c_concat"): Ours(nchw(cond.concat)) for key, cond in conds.items()}


def _run_text_encoder(case: Case) -> dict[str, Ours]:
    state = lazy_state(case, CONDITIONER + "transformer.")
    model, tokens = text_encoder(state.shapes), jnp.asarray(case.inputs["tokens"])
    variables = restore(model, state, tokens, logits=True)
    z = run_once(model.apply, variables, tokens)
    ours = {"z": np.asarray(z), "context": np.asarray(z)}
    if "z_short" in case.outputs:
        length = case.meta["outputs"]["z_short"]["shape"][1]
        ours["z_short"] = np.asarray(run_once(model.apply, variables, tokens[:, :length]))
    if "logits_row0" in case.outputs:
        head = {"params": variables["params"]["to_logits"]}
        ours["logits_row0"] = np.asarray(Dense(model.vocab_size).apply(head, z[0, 0]))
    return {key: Ours(value) for key, value in ours.items()}


def first_stage(shapes):
    """Our AutoencoderKL or VQModel for the shapes of the original's state dict."""
    def part(name: str) -> dict:
        return {key.removeprefix(name): shape for key, shape in shapes.items() if key.startswith(name)}

    fields = autoencoder_fields(part("encoder."), {})
    fields["out_channels"] = shapes["decoder.conv_out.weight"][0]
    fields["in_channels"] = shapes["encoder.conv_in.weight"][1]
    z_channels, embed_dim = shapes["post_quant_conv.weight"][:2]
    fields |= dict(z_channels=z_channels, embed_dim=embed_dim)
    if "quantize.embedding.weight" in shapes:
        return VQModel(**fields, n_embed=shapes["quantize.embedding.weight"][0])
    return AutoencoderKL(**fields)


def run_first_stage(case: Case) -> dict[str, Ours]:
    """Encoding, bottleneck and decoding of a released first stage, with a codebook or with a Gaussian."""
    start, own = "encoder.conv_in.weight", tuple(case.meta["weight_prefixes"])
    prefix = next(k for k in lazy_state(case) if k.endswith(start) and k.startswith(own)).removesuffix(start)
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    shapes = lazy_state(case, prefix).shapes
    state = MadeUpState({prefix + k: s for k, s in shapes.items() if k.startswith(parts)}, "", prefix)
    module, image = first_stage(state.shapes), jnp.asarray(nhwc(case.inputs["x"]))
    variables = restore(module, state, image)
    return (_run_vq if isinstance(module, VQModel) else _run_kl)(case, module, variables, image)


def _run_kl(case: Case, module: AutoencoderKL, variables: dict, image: jax.Array) -> dict[str, Ours]:
    def run(variables, image, noise):
        p = module.apply(variables, image, method="posterior")
        found = {"moments": p.moments, "mean": p.mean, "logvar": p.logvar, "mode": p.mode()}
        if noise is not None:
            found["sample_with_noise"] = p.mean + p.std * noise
        found["dec"] = module.apply(variables, p.mode(), method="decode")
        return {k: jnp.moveaxis(v, -1, 1) for k, v in found.items()} | {"kl": p.kl()}

    noise = case.inputs.get("noise")
    ours = run_once(run, variables, image, None if noise is None else jnp.asarray(nhwc(noise)))
    return {key: Ours(np.asarray(value)) for key, value in ours.items()}


def _run_vq(case: Case, module: VQModel, variables: dict, image: jax.Array) -> dict[str, Ours]:
    def run(variables, image):
        z = module.apply(variables, image, method="latents")
        _, loss, indices = module.apply(variables, z, method=lambda m, z: m.quantize(z))
        return z, loss, indices, module.apply(variables, z, False, method="decode")

    z, loss, indices, unquantised = run_once(run, variables, image)
    margin, slope = _margins(np.asarray(z), np.asarray(variables["params"]["quantize"]["embedding"]["embedding"]))
    indices, golden = np.asarray(indices), case.outputs["indices"].reshape(indices.shape)
    ties = (indices != golden) & (margin < NEAR_TIE)
    reason = f"{ties.sum()} of {ties.size} codes are near ties, taken as the golden's" if ties.any() else ""
    indices = np.where(ties, golden, indices)
    quantised = module.apply(variables, jnp.asarray(indices), method=lambda m, i: m.quantize.lookup(i))
    decoded = run_once(lambda v, i: module.apply(v, i, method="decode_indices"), variables, jnp.asarray(indices))
    shape = case.meta["outputs"]["indices"]["shape"]
    margin = Ours(
        margin.reshape(case.meta["outputs"]["margin_d2_minus_d1"]["shape"]),
        scale=slope * float(case.outputs["prequant"].std()),
        reason="of what prequant's standard deviation would make of it: two nearly equal squares are subtracted",
    )
    return {
        "prequant": Ours(nchw(z)),
        "quant": Ours(nchw(quantised), reason=reason),
        "indices": Ours(indices.reshape(shape), reason=reason),
        "qloss": Ours(np.asarray(loss)),
        "margin_d2_minus_d1": margin,
        "dec": Ours(nchw(decoded), reason=reason),
        "dec_noquant": Ours(nchw(unquantised)),
    }


def _margins(z: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, float]:
    """By how much the second nearest code is farther than the nearest, in squared distance: [B,h,w] float64.

    And how much a margin changes at most when every element of z changes by 1: twice the codes' distance in L1.
    """
    flat, table = z.reshape(-1, z.shape[-1]).astype(np.float64), table.astype(np.float64)
    squared = (flat**2).sum(1)[:, None] + (table**2).sum(1)[None] - 2 * flat @ table.T
    order = np.argpartition(squared, 1, axis=1)[:, :2]
    two = np.take_along_axis(squared, order, axis=1)
    slope = 2 * np.abs(table[order[:, 1]] - table[order[:, 0]]).sum(1).max()
    return (two.max(1) - two.min(1)).reshape(z.shape[:-1]), float(slope)


def manifest_kind(case: Case):
    """Which of the functions above runs a case with a manifest, or None."""
    prefixes = case.meta.get("weight_prefixes", ())
    if UNET in prefixes:
        return run_unet
    if any(re.search(r"(^|\.)(encoder|decoder)\.$|first_stage_model\.$", p) for p in prefixes):
        return run_first_stage
    return run_conditioner if CONDITIONER in prefixes else None
