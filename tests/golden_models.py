"""Goldens of whole models: UNets, first stages and conditioners, at any size; options told from the weights."""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import tree
from ldm_jax.conditions.class_label import ClassEmbedder
from ldm_jax.conditions.inpaint import Inpainting
from ldm_jax.conditions.semantic import SpatialRescaler
from ldm_jax.convert.names import to_torch_array, torch_key
from ldm_jax.models.autoencoder import AutoencoderKL, VQModel
from ldm_jax.models.layers import Dense, timestep_embedding
from ldm_jax.models.quantizer import DiagonalGaussian
from ldm_jax.models.unet import UNet
from tests.golden_modules import autoencoder_fields, first_that_fits, numbers, text_encoder
from tests.golden_tools import (
    Case,
    MadeUpState,
    MismatchError,
    Ours,
    UnsupportedError,
    lazy_state,
    nchw,
    nhwc,
    restore,
    run_once,
)

UNET, CONDITIONER, FIRST_STAGE = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."
MARGIN = "margin_d2_minus_d1"
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


def told_heads(kwargs: dict) -> dict:
    """Fields of our UNet for the original's arguments about heads, of which a width given wins over a number."""
    heads = {k: kwargs[k] for k in ("num_heads", "num_head_channels", "legacy") if kwargs.get(k, -1) != -1}
    if kwargs.get("num_heads_upsample", -1) not in (-1, heads.get("num_heads")):
        raise UnsupportedError("another number of heads on the way up")
    if "num_head_channels" in heads:
        heads.pop("num_heads", None)
    return heads


def run_small_unet(case: Case) -> dict[str, Ours]:
    """eps, eps_small, gradients of mean(eps * g) to z, to the context and to parameters, and norms of the last."""
    kwargs, state = case.meta.get("kwargs", {}), lazy_state(case)
    fields = unet_fields(state.shapes)
    context, y = (jnp.asarray(case.inputs[k]) if k in case.inputs else None for k in ("context", "y"))
    width = None if context is None else context.shape[-1]
    new_order = kwargs.get("use_new_attention_order", False)
    module = UNet(**fields, **told_heads(kwargs), context_dim=width, use_new_attention_order=new_order)
    if module.n_embed is not None:  # the original keeps an output head that it does not use then
        state = state.without("out.")
    t = jnp.asarray(case.inputs["t"])
    images = {k: jnp.asarray(nhwc(v)) for k, v in case.inputs.items() if k == "g" or k[0] == "x"}
    params = restore(module, state, images["x"], t, context, y=y)["params"]

    def both(params, z, small, context, g):
        def predict(params, z, context):
            return module.apply({"params": params}, z, t, context, y=y)

        eps, pull_back = jax.vjp(predict, params, z, context)
        grads, grad_z, grad_context = pull_back(g / g.size)
        grads = tree.flatten(grads)
        norms = {path: jnp.linalg.norm(grad) for path, grad in grads.items()}
        asked = {path: grad for path, grad in grads.items() if f"grad_{torch_key(path)}" in case.outputs}
        small = None if small is None else predict(params, small, context)
        return eps, small, grad_z, grad_context, norms, asked

    g = images.get("g")
    g = jnp.ones((*images["x"].shape[:3], fields["n_embed"] or fields["out_channels"])) if g is None else g
    found = run_once(both, params, images["x"], images.get("x_small"), context, g)
    eps, small, grad_z, grad_context, norms, asked = found
    ours = {"eps": Ours(nchw(eps)), "grad_x": Ours(nchw(grad_z))}
    if small is not None:
        ours["eps_small"] = Ours(nchw(small))
    if context is not None:
        ours["grad_context"] = Ours(np.asarray(grad_context))
    for path, grad in asked.items():
        key = torch_key(path)
        ours[f"grad_{key}"] = Ours(to_torch_array(path, grad, state.shapes[key]))
    check_gradient_norms(case, norms)
    return ours


def check_gradient_norms(case: Case, norms: dict) -> None:
    """Raises MismatchError where the norm of a parameter's gradient is not the recorded one within 1e-3.

    Some exact gradients are zero (a bias before a norm): their round-off is compared to the largest.
    """
    recorded = {k: v for k, v in case.meta.get("extra", {}).get("grad_norms", {}).items() if v is not None}
    largest = max(recorded.values(), default=0.0)
    for path, norm in norms.items():
        expected = recorded.get(torch_key(path))
        if expected is not None and abs(float(norm) - expected) > 1e-3 * expected + 1e-6 * largest:
            raise MismatchError(f"norm of the gradient to {path}: {float(norm)}, golden {expected}")


@dataclass(frozen=True)
class Told:
    """What a UNet is told: context [B,L,D] and concat [B,h,w,C], and outputs of the case on the way."""

    context: jax.Array | None
    concat: jax.Array | None
    outputs: dict[str, Ours]


def run_unet(case: Case) -> dict[str, Ours]:
    """A released UNet: eps, t_emb, and what its conditioner made, if the case has one."""
    state = lazy_state(case, UNET)
    told = conditionings(case, state.shapes["input_blocks.0.0.weight"][1])
    first = next(iter(told.values()))
    where = f"{case.meta['manifest']} {case.meta.get('config', '')}"
    heads = told_heads(case.meta.get("kwargs", {})) or next(heads for part, heads in HEADS if part in where)
    fields = unet_fields(state.shapes)
    if first.context is None and fields["use_spatial_transformer"]:
        raise UnsupportedError("a UNet with transformers, and nothing in the case's inputs to be its context")
    width = None if first.context is None else first.context.shape[-1]
    module = UNet(**fields, **heads, context_dim=width)
    x, t = jnp.asarray(nhwc(case.inputs["x"])), jnp.asarray(case.inputs["t"])
    embedded = {"t_emb": _embedding(timestep_embedding(t, module.model_channels))}

    def joined(told: Told) -> jax.Array:
        return x if told.concat is None else jnp.concatenate([x, told.concat], axis=-1)

    variables = restore(module, state, joined(first), t, first.context)

    def run(reading: str) -> dict[str, Ours]:
        eps = run_once(module.apply, variables, joined(told[reading]), t, told[reading].context)
        return {"eps": Ours(nchw(eps))} | embedded | told[reading].outputs

    return first_that_fits(case, list(told), run, "range of the mask")


def _embedding(value) -> Ours:
    reason = "its argument reaches 999 radians, of which one float32 step is 6e-5"
    return Ours(np.asarray(value), tolerance=2e-4, reason=reason)


def conditionings(case: Case, channels: int) -> dict[str, Told]:
    """What the case's inputs say to a UNet of that many input channels, by the ways to read them (mostly one)."""
    inputs = case.inputs
    missing = channels - inputs["x"].shape[1]
    context = next((jnp.asarray(inputs[k]) for k in ("context", "c_crossattn") if k in inputs), None)
    if context is None:  # under whatever name
        context = next((jnp.asarray(v) for v in inputs.values() if v.ndim == 3 and v.dtype == np.float32), None)
    if "masked_image" in inputs and inputs["masked_image"].shape[2:] != inputs["x"].shape[2:]:
        return _inpainting(case)
    beside = [nhwc(v) for k, v in inputs.items()
              if k != "x" and v.ndim == 4 and v.shape[2:] == inputs["x"].shape[2:]]  # fmt: skip
    beside = sorted(beside, key=lambda v: v.shape[-1] == 1)  # a mask stands last, wherever the case lists it
    fits = sum(v.shape[-1] for v in beside) == missing
    given = context is not None or (missing and fits)
    if CONDITIONER in case.meta.get("weight_prefixes", ()) and not given:
        ours = run_conditioner(case)
        value = {key: jnp.asarray(v.value) for key, v in ours.items()}
        if "context" in value or "z" in value:
            return {"": Told(value.get("context", value.get("z")), None, ours)}
        return {"": Told(None, jnp.asarray(nhwc(value["c_concat"])), ours)}
    if not fits:
        raise UnsupportedError(f"{missing} channels beside x needed, found {[v.shape for v in beside]}")
    concat = jnp.asarray(np.concatenate(beside, axis=-1)) if missing else None
    return {"": Told(context, concat, {})}


def _inpainting(case: Case) -> dict[str, Told]:
    """A masked picture [B,3,H,W] to be encoded and its mask [B,1,H,W], which the UNet sees in -1..1.

    A mask in 0..1 may be meant as it is, or as what is yet to be taken to -1..1: the outputs decide.
    """
    # The original loads the weights of both names into one module, those of the conditioner last.
    prefixes = case.meta.get("weight_prefixes", ())
    only_first = FIRST_STAGE in prefixes and CONDITIONER not in prefixes
    module, variables = first_stage(case, FIRST_STAGE if only_first else CONDITIONER)
    image, mask = (jnp.asarray(nhwc(case.inputs[k])) for k in ("masked_image", "mask"))
    z = run_once(lambda v, x: module.apply(v, x, method="latents"), variables, image)
    readings = {"as it is": (mask + 1) / 2}
    if mask.min() >= 0:
        readings["0..1 to be -1..1"] = mask
    told = {}
    for reading, holes in readings.items():
        batch = {"masked_image": image, "mask": holes}
        concat = Inpainting().apply({}, batch, lambda _: z).concat
        told[reading] = Told(None, concat, {"c_concat": Ours(nchw(concat)), "c": Ours(nchw(concat))})
    return told


def run_conditioner(case: Case) -> dict[str, Ours]:
    """A conditioner of a released model: labels, semantic maps or tokens to what the UNet is told."""
    state = lazy_state(case, CONDITIONER)
    if "embedding.weight" in state:
        labels = jnp.asarray(whole_numbers(case, ("class_label", "label"), 1))
        module, batch = ClassEmbedder(*state.shapes["embedding.weight"]), {"label": labels}
        cond = module.apply(restore(module, state, batch, None), batch, None)
        return {"context": Ours(np.asarray(cond.context))}
    if "transformer.token_emb.weight" in state:
        return _run_text_encoder(case)
    if "channel_mapper.weight" in state:
        return _run_rescaler(case, state)
    raise UnsupportedError(f"no conditioner of ours has weights like {sorted(state)[:3]}")


def whole_numbers(case: Case, keys: tuple[str, ...], ndim: int) -> np.ndarray:
    """The input of one of these names; else the only one of whole numbers and that many axes, but for t."""
    named = [case.inputs[key] for key in keys if key in case.inputs]
    alike = [v for k, v in case.inputs.items() if k != "t" and v.ndim == ndim and np.issubdtype(v.dtype, np.integer)]
    if not named and len(alike) != 1:
        raise UnsupportedError(f"no input named {' or '.join(keys)} among {', '.join(case.inputs)}")
    return (named or alike)[0]


def _run_rescaler(case: Case, state: MadeUpState) -> dict[str, Ours]:
    maps = {k: {k.split("_")[0]: jnp.asarray(nhwc(v))} for k, v in case.inputs.items() if k.startswith("segmentation")}
    height = maps["segmentation"]["segmentation"].shape[1]
    recorded = case.meta["outputs"].get("c_concat", {}).get("shape")
    small = recorded[2] if recorded else case.inputs["x"].shape[2]
    out_channels, classes = state.shapes["channel_mapper.weight"][:2]
    module = SpatialRescaler(classes, out_channels, round(np.log2(height / small)))
    variables = restore(module, state, maps["segmentation"], None)
    conds = {key: module.apply(variables, batch, None) for key, batch in maps.items()}
    return {key.replace("segmentation", "c_concat"): Ours(nchw(cond.concat)) for key, cond in conds.items()}


def _run_text_encoder(case: Case) -> dict[str, Ours]:
    state = lazy_state(case, CONDITIONER + "transformer.")
    model, tokens = text_encoder(state.shapes), jnp.asarray(whole_numbers(case, ("tokens",), 2))
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


def first_stage(case: Case, prefix: str):
    """Our AutoencoderKL or VQModel for the keys with a prefix of the case's manifest, and its variables."""
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    shapes = {k: s for k, s in lazy_state(case, prefix).shapes.items() if k.startswith(parts)}
    encoder = {k.removeprefix("encoder."): s for k, s in shapes.items() if k.startswith("encoder.")}
    fields = autoencoder_fields(encoder, {})
    fields["out_channels"] = shapes["decoder.conv_out.weight"][0]
    fields["in_channels"] = shapes["encoder.conv_in.weight"][1]
    z_channels, embed_dim = shapes["post_quant_conv.weight"][:2]
    fields |= dict(z_channels=z_channels, embed_dim=embed_dim)
    if "quantize.embedding.weight" in shapes:
        module = VQModel(**fields, n_embed=shapes["quantize.embedding.weight"][0])
    else:
        module = AutoencoderKL(**fields)
    state = MadeUpState({prefix + k: s for k, s in shapes.items()}, "", prefix)
    side = 2 ** len(fields["ch_mult"])
    return module, restore(module, state, jnp.zeros((1, side, side, fields["in_channels"])))


def run_first_stage(case: Case) -> dict[str, Ours]:
    """Encoding, bottleneck and decoding of a released first stage, with a codebook or with a Gaussian."""
    start, own = "encoder.conv_in.weight", tuple(case.meta["weight_prefixes"])
    prefix = next(k for k in lazy_state(case) if k.endswith(start) and k.startswith(own)).removesuffix(start)
    module, variables = first_stage(case, prefix)
    image = jnp.asarray(nhwc(case.inputs["x"]))
    return (_run_vq if isinstance(module, VQModel) else _run_kl)(case, module, variables, image)


def encoded(module: AutoencoderKL | VQModel, image: jax.Array) -> jax.Array:
    """What the bottleneck gets. Unlike ours the original takes sizes that are no multiples of its factor."""
    return module.quant_conv(module.encoder(image)).astype(jnp.float32)


def _run_kl(case: Case, module: AutoencoderKL, variables: dict, image: jax.Array) -> dict[str, Ours]:
    def run(variables, image, noise):
        p = DiagonalGaussian(module.apply(variables, image, method=encoded))
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
        z = module.apply(variables, image, method=encoded)
        _, loss, indices = module.apply(variables, z, method=lambda m, z: m.quantize(z))
        return z, loss, indices, module.apply(variables, z, False, method="decode")

    z, loss, indices, unquantised = run_once(run, variables, image)
    margin, slope = _margins(np.asarray(z), np.asarray(variables["params"]["quantize"]["embedding"]["embedding"]))
    indices, reason = np.asarray(indices), ""
    if "indices" in case.outputs and case.outputs["indices"].size == indices.size:
        golden = case.outputs["indices"].reshape(indices.shape)
        ties = (indices != golden) & (margin < NEAR_TIE)
        reason = f"{ties.sum()} of {ties.size} codes are near ties, taken as the golden's" if ties.any() else ""
        indices = np.where(ties, golden, indices)
    quantised = module.apply(variables, jnp.asarray(indices), method=lambda m, i: m.quantize.lookup(i))
    decoded = run_once(lambda v, i: module.apply(v, i, method="decode_indices"), variables, jnp.asarray(indices))
    shapes = {key: case.meta["outputs"].get(key, {"shape": indices.shape})["shape"] for key in ("indices", MARGIN)}
    ours = {
        "prequant": Ours(nchw(z)),
        "quant": Ours(nchw(quantised), reason=reason),
        "indices": Ours(indices.reshape(shapes["indices"]), reason=reason),
        "qloss": Ours(np.asarray(loss)),
        "dec": Ours(nchw(decoded), reason=reason),
        "dec_noquant": Ours(nchw(unquantised)),
    }
    ours[MARGIN] = Ours(
        margin.reshape(shapes[MARGIN]),
        scale=slope * float(np.std(z)),
        reason="of what prequant's standard deviation would make of it: two nearly equal squares are subtracted",
    )
    return ours


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
