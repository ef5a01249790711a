"""Goldens of single modules: which module of ours a case is about, told from its weights' names and shapes."""

import re
from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models import attention, layers
from ldm_jax.models.autoencoder import Decoder, Encoder
from ldm_jax.models.discriminator import NLayerDiscriminator
from ldm_jax.models.quantizer import VectorQuantizer
from ldm_jax.models.text_encoder import TextEncoder
from tests.discriminator_tools import variables
from tests.golden import weights
from tests.golden_tools import (
    Case,
    Ours,
    UnsupportedError,
    difference,
    lazy_state,
    nchw,
    nhwc,
    restore,
    run_once,
    stream_prefix,
)


def numbers(shapes, prefix: str) -> list[int]:
    """The n of the keys "<prefix><n>.", sorted."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in shapes)
    return sorted({int(m[1]) for m in found if m})


def number_in(pattern: str, text: str) -> float | None:
    """The first group of the pattern's first match in text, as a number."""
    found = re.search(pattern, text)
    return float(found[1]) if found else None


def autoencoder_fields(shapes, kwargs: dict) -> dict:
    """Fields of our Encoder or Decoder for the shapes of its state dict; ch_mult are whole widths for a decoder.

    The nominal resolution is 256: only its relation to attn_resolutions counts.
    """
    strange = {k: kwargs[k] for k in ("give_pre_end", "use_timestep") if kwargs.get(k)}
    if strange or not kwargs.get("resamp_with_conv", True):
        raise UnsupportedError(f"options of the autoencoder: {strange or 'resamp_with_conv'}")
    side, extra = ("down.", 0) if numbers(shapes, "down.") else ("up.", 1)
    found = numbers(shapes, side)
    widths = [shapes[f"{side}{i}.block.0.conv1.weight"][0] for i in found]
    ch = shapes["conv_in.weight"][0] if side == "down." else 1
    kind = "linear" if "mid.attn_1.to_qkv.weight" in shapes else "vanilla"
    return dict(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=len(numbers(shapes, f"{side}0.block.")) - extra,
        attn_resolutions=tuple(256 >> i for i in found if numbers(shapes, f"{side}{i}.attn.")),
        attn_type=kind if any(key.startswith("mid.attn_1.") for key in shapes) else "none",
        resolution=256,
        out_channels=shapes["conv_out.weight"][0],
    )


class _DecodedImage(Decoder):
    """Decoder that returns the image alone, with the original's option of a tanh."""

    tanh_out: bool = False

    @nn.compact
    def __call__(self, z):
        image = super().__call__(z)[0]
        return jnp.tanh(image) if self.tanh_out else image


def _heads(case: Case, width: int) -> list[int]:
    """The number of heads that the case's fields tell; else all that may be, first those that its words hint at."""
    told, text = case.meta.get("kwargs", {}), f"{case.name} {case.about}"
    head_width = told.get("num_head_channels", told.get("dim_head")) or -1
    count = told.get("num_heads", told.get("n_heads", told.get("heads"))) or -1
    if head_width != -1 or count != -1:
        return [width // int(head_width) if head_width != -1 else int(count)]
    count, head_width = number_in(r"(?:_h|\bheads=)(\d+)", text), number_in(r"(?:_hc|\bdim_head=)(\d+)", text)
    hints = [count or width / head_width] if count or head_width else []
    return [int(n) for n in dict.fromkeys([*hints, 4, 1, 2, 8, 16, 32]) if n >= 1 and width % n == 0]


def _res_block(case: Case, shapes, ratio: float) -> list[nn.Module]:
    features = shapes["out_layers.3.weight"][0]
    ssn = shapes["emb_layers.1.weight"][0] == 2 * features
    return [layers.ResBlock(features, use_scale_shift_norm=ssn, up=ratio > 1, down=ratio < 1)]


def _attention_block(case: Case, shapes, ratio: float) -> list[nn.Module]:
    heads = _heads(case, shapes["proj_out.weight"][0])
    new = case.meta.get("kwargs", {}).get("use_new_attention_order")
    hinted = "neworder" in case.name or "chunk q,k,v then" in case.about
    orders = [hinted, not hinted] if new is None else [bool(new)]
    return [attention.AttentionBlock(n, new_order=order) for n in heads for order in orders]


def _transformer(case: Case, shapes, ratio: float) -> list[nn.Module]:
    inner, depth = shapes["proj_in.weight"][0], len(numbers(shapes, "transformer_blocks."))
    return [attention.SpatialTransformer(n, inner // n, depth) for n in _heads(case, inner)]


def _transformer_block(case: Case, shapes, ratio: float) -> list[nn.Module]:
    inner = shapes["attn1.to_q.weight"][0]
    return [attention.BasicTransformerBlock(n, inner // n) for n in _heads(case, inner)]


def _cross_attention(case: Case, shapes, ratio: float) -> list[nn.Module]:
    inner = shapes["to_q.weight"][0]
    return [attention.CrossAttention(n, inner // n) for n in _heads(case, inner)]


def _resampling(case: Case, shapes, ratio: float) -> list[nn.Module]:
    return [layers.Upsample() if ratio > 1 else layers.AEDownsample()]


def _without_weights(case: Case, shapes, ratio: float) -> list[nn.Module]:
    return [layers.Upsample(use_conv=False) if ratio > 1 else layers.Downsample(use_conv=False)]


def _encoder_or_decoder(case: Case, shapes, ratio: float) -> list[nn.Module]:
    kwargs = case.meta.get("kwargs", {})
    fields = autoencoder_fields(shapes, kwargs)
    if numbers(shapes, "down."):
        return [Encoder(**fields)]
    return [_DecodedImage(**fields, tanh_out=kwargs.get("tanh_out", False))]


# The first key that a module's state dict has decides.
MODULES: dict[str, Callable] = {
    "in_layers.0.weight": _res_block,
    "qkv.weight": _attention_block,
    "proj_in.weight": _transformer,
    "attn1.to_q.weight": _transformer_block,
    "to_qkv.weight": lambda *_: [attention.LinearAttention()],
    "to_q.weight": _cross_attention,
    "net.0.proj.weight": lambda *_: [attention.FeedForward()],
    "net.0.0.weight": lambda *_: [attention.FeedForward(gated=False)],
    "q.weight": lambda *_: [attention.AttnBlock()],
    "norm1.weight": lambda case, shapes, _: [layers.AEResnetBlock(shapes["conv1.weight"][0])],
    "op.weight": lambda *_: [layers.Downsample()],
    "conv.weight": _resampling,
    "conv_in.weight": _encoder_or_decoder,
}


def run_module(case: Case) -> dict[str, Ours]:
    """x<suffix> -> y<suffix>, and y_masked for a mask; emb and context go to every run."""
    state = lazy_state(case)
    shapes = state.shapes
    build = next((build for key, build in MODULES.items() if key in shapes), None if shapes else _without_weights)
    if build is None:
        raise UnsupportedError(f"no module of ours has weights like {sorted(shapes)[:3]}")
    xs = {key: value for key, value in case.inputs.items() if key == "x" or key.startswith("x_")}
    others = [jnp.asarray(case.inputs[k]) for k in ("emb", "context") if k in case.inputs]
    first = next(iter(xs))
    recorded = case.meta["outputs"]["y" + first[1:]]["shape"]
    candidates = build(case, shapes, recorded[-1] / xs[first].shape[-1])

    def apply(module: nn.Module, variables: dict) -> dict[str, Ours]:
        ours = {}
        for key, x in xs.items():
            image = x.ndim == 4
            y = module.apply(variables, jnp.asarray(nhwc(x) if image else x), *others)
            ours["y" + key[1:]] = Ours(nchw(y) if image else np.asarray(y))
        if "mask" in case.inputs:
            mask = jnp.asarray(case.inputs["mask"], bool)
            y = module.apply(variables, jnp.asarray(case.inputs["x"]), *others, mask=mask)
            ours["y_masked"] = Ours(np.asarray(y))
        return ours

    sample = jnp.asarray(nhwc(xs[first]) if xs[first].ndim == 4 else xs[first])
    variables = restore(candidates[0], state, sample, *others)
    return first_that_fits(case, candidates, lambda module: apply(module, variables), "heads")


def first_that_fits(case: Case, candidates: list, run: Callable, what: str) -> dict[str, Ours]:
    """run(candidate) of the only candidate, or of the first whose outputs all agree; remarks that it was tried.

    For options that a case does not record and on which its outputs depend. Where none fits: that of the first.
    """
    first = None
    for candidate in candidates:
        ours = run(candidate)
        if len(candidates) == 1:
            return ours
        first = first or ours
        recorded = {key: value for key, value in ours.items() if key in case.outputs}
        if all(difference(case, key, value) <= value.tolerance for key, value in recorded.items()):
            name = candidate if isinstance(candidate, bool | tuple | str) else fields_of(candidate)
            remark = f"{what} not recorded, {name} fits"
            return {k: replace(v, reason="; ".join(filter(None, (v.reason, remark)))) for k, v in ours.items()}
    return first


def fields_of(module: nn.Module) -> str:
    """The numbers that a module was made with, for a remark."""
    known = ("num_heads", "new_order")
    return ", ".join(f"{name}={getattr(module, name)}" for name in known if hasattr(module, name))


def text_encoder(shapes) -> TextEncoder:
    """Our text encoder for the shapes of the original's state dict (without prefix)."""
    vocab, dim = shapes["token_emb.weight"]
    depth = len(numbers(shapes, "attn_layers.layers.")) // 2
    return TextEncoder(vocab, shapes["pos_emb.emb.weight"][0], dim, depth)


def run_text_transformer(case: Case) -> dict[str, Ours]:
    """Small text encoders: emb, logits, emb_masked."""
    state, tokens = lazy_state(case), jnp.asarray(case.inputs["tokens"])
    model = text_encoder(state.shapes)
    factor = number_in(r"multiplied by ([\d.]+[\d])", case.about)
    if factor:
        state = {k: v * np.float32(factor if k in ("token_emb.weight", "pos_emb.emb.weight") else 1)
                 for k, v in state.items()}  # fmt: skip
    params = restore(model, state, tokens, logits=True)
    ours = {"emb": model.apply(params, tokens), "logits": model.apply(params, tokens, logits=True)}
    if "mask" in case.inputs:
        ours["emb_masked"] = model.apply(params, tokens, jnp.asarray(case.inputs["mask"]))
    return {key: Ours(np.asarray(value)) for key, value in ours.items()}


def run_quantizer(case: Case) -> dict[str, Ours]:
    """Codebook: values, loss, gradients of the loss and straight through."""
    key = re.search(r"make_weight\(\W?([\w/.]+)", case.about)
    key = key[1] if key else "mod_vq/quantize.embedding.weight"
    z = jnp.asarray(nhwc(case.inputs["z"]))
    g = jnp.asarray(nhwc(case.inputs["g"])) if "g" in case.inputs else jnp.ones_like(z)
    codes = int(case.meta.get("n_e") or number_in(r"n_e=(\d+)", case.about) or 0)
    codes = codes or case.meta["outputs"]["grad_loss_codebook"]["shape"][0]
    table = jnp.asarray(weights.make_weight(key, (codes, z.shape[-1])))
    beta = case.meta.get("beta") or number_in(r"beta=([\d.]+)", case.about) or 0.25
    told = case.meta.get("legacy", number_in(r"legacy[_=]?([01])", f"{case.name} {case.about}"))
    candidates = [True, False] if told is None else [bool(told)]

    def run(legacy: bool) -> dict[str, Ours]:
        module = VectorQuantizer(codes, z.shape[-1], beta, legacy)

        def quantize(table, z, method=None):
            return module.apply({"params": {"embedding": {"embedding": table}}}, z, method=method)

        z_q, loss, indices = quantize(table, z)
        grad_table, grad_z = jax.grad(lambda e, z: quantize(e, z)[1], (0, 1))(table, z)
        through_table, through_z = jax.grad(lambda e, z: (quantize(e, z)[0] * g).sum(), (0, 1))(table, z)
        if np.any(through_table) and case.meta.get("extra", {}).get("straight_through_codebook_grad_is_None"):
            raise ValueError("the codebook got a gradient from its outputs")
        return {
            "z_q": Ours(nchw(z_q)),
            "loss": Ours(np.asarray(loss)),
            "indices": Ours(np.reshape(indices, case.meta["outputs"].get("indices", {"shape": [-1]})["shape"])),
            "grad_loss_z": Ours(nchw(grad_z)),
            "grad_loss_codebook": Ours(np.asarray(grad_table)),
            "grad_st_z": Ours(nchw(through_z)),
            "codebook_entry": Ours(nchw(quantize(table, indices, "lookup"))),
        }

    return first_that_fits(case, candidates, run, "legacy beta")


def run_discriminator(case: Case) -> dict[str, Ours]:
    """Logits with the batch's and with running statistics, and these after; or ActNorm's first batch."""
    shapes = case.meta["weight_manifest"]
    convolutions = sorted(int(k.split(".")[1]) for k, s in shapes.items() if k.endswith("weight") and len(s) == 4)
    actnorm = any(key.endswith(".loc") for key in shapes)
    model = NLayerDiscriminator(shapes["main.0.weight"][0], len(convolutions) - 2, actnorm)
    v = variables(shapes, stream_prefix(case))
    x = jnp.asarray(nhwc(case.inputs["x"]))

    def first_batch(v, x):
        # Parameters that are missing are initialised: only those of ActNorm are.
        logits, new = model.apply(v, x, True, mutable=["params"], rngs={"params": jax.random.key(0)})
        norm = new["params"]["main_3"]
        return {
            "logits_train_first": nchw_(logits),
            "logits_eval_after": nchw_(model.apply(new, x, False)),
            "loc_after": norm["loc"][None, :, None, None],
            "scale_after": norm["scale"][None, :, None, None],
        }

    def batch_norm(v, x, odd):
        logits, new = model.apply(v, x, True, mutable=["batch_stats"])
        after = new["batch_stats"]["main_3"]
        found = {"logits_train": nchw_(logits), "logits_eval": nchw_(model.apply(v, x, False))}
        if odd is not None:
            found["logits_eval_odd"] = nchw_(model.apply(v, odd, False))
        return found | {"running_mean_after": after["mean"], "running_var_after": after["var"]}

    if actnorm:
        ours = run_once(first_batch, {"params": v["params"]}, x)
    else:
        odd = case.inputs.get("x_odd")
        ours = run_once(batch_norm, v, x, None if odd is None else jnp.asarray(nhwc(odd)))
    return {key: Ours(np.asarray(value)) for key, value in ours.items()}


def nchw_(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)
