"""Every recipe: its tiny variant builds, takes a step and stays finite; full-size parameter counts are the paper's."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build, recipes, rundir, tree
from ldm_jax.data.tokenizers import train_wordpiece
from ldm_jax.training import setup
from tests.fast import compiled

# "name" or, of a file of several models, each "name:variant"
RECIPES = [model for name in recipes.names() for model in ([f"{name}:{v}" for v in recipes.variants(name)] or [name])]

# Millions of parameters of the UNet (LDMs) or autoencoder (first stages), and of the conditioner where it has any:
# the released weights and the paper's tables 12 to 15, recomputed where a table does not fit its own row
# (docs/deviations.md).
PAPER = {
    "celeba_ldm4": 274.06,
    "ffhq_ldm4": 274.06,
    "lsun_bedrooms_ldm4": 274.06,
    "lsun_churches_ldm8": 294.97,
    "imagenet_ldm4": (400.92, 0.51),
    "imagenet_ldm8": (394.98, 0.51),
    "imagenet_dit_xl2": (673.68, 1.15),  # table 1 of arXiv 2212.09748: 675M; tests/convert/test_dit.py counts them
    "text2img_ldm8": (872.30, 542.90),
    "text2img_ldm4": (403.62, 166.59),
    "openimages_layout_ldm4": (246.28, 54.66),
    "coco_layout_ldm8": (312.2, 29.4),
    "landscapes_semantic_ldm4": 215.23,
    "landscapes_semantic_512_ldm4": 215.23,
    "imagenet_superres_ldm4": 113.62,
    "places_inpainting_big_ldm4": 387.25,
    "places_inpainting_ldm4": 215.23,
    "places_inpainting_compression:f1": 221.58,
    "places_inpainting_compression:f1_narrow": 220.52,
    "places_inpainting_compression:kl_f4": 215.23,
    "places_inpainting_compression:vq_f4": 215.23,
    "places_inpainting_compression:vq_f4_noattn": 215.23,
    "rdm_768_ldm16": 1335.48,
    "imagenet_compression:f1": (396.8, 0.5),
    "imagenet_compression:f2": (390.9, 0.5),
    "imagenet_compression:f4": (400.9, 0.5),
    "imagenet_compression:f8": (395.0, 0.5),
    "imagenet_compression:f16": (395.0, 0.5),
    "imagenet_compression:f32": (395.1, 0.5),
    "celeba_compression:f1": 270.5,
    "celeba_compression:f2": 264.5,
    "celeba_compression:f4": 274.1,
    "celeba_compression:f8": 257.7,
    "celeba_compression:f16": 257.8,
    "celeba_compression:f32": 257.9,
    "imagenet_classifier:f8": 111.6,  # table 10: 506M with it, 395M without
    "imagenet_classifier:f4": 109.67,
    "first_stage_kl_f4": 55.31,
    "first_stage_kl_f8": 83.65,
    "first_stage_sd_vae": 83.65,
    "first_stage_kl_f16": 69.61,
    "first_stage_kl_f32": 103.88,
    "first_stage_vq_f4": 55.32,
    "first_stage_vq_f4_noattn": 53.22,
    "first_stage_vq_f8": 67.72,
    "first_stage_vq_f8_n256": 67.65,
    "first_stage_vq_f16": 69.59,
    # Never released: their neighbours' sizes, computed here, so that a change shows.
    "first_stage_table8:vq_f2": 13.31,
    "first_stage_table8:vq_f2_n64": 13.31,
    "first_stage_table8:vq_f4_n256": 55.3,
    "first_stage_table8:vq_f32": 103.38,
    "first_stage_table8:vq_f32_c32": 103.8,
    "first_stage_table8:kl_f2": 13.31,
    "first_stage_table8:kl_f16_c8": 69.5,
    "first_stage_table8:kl_f32_c16": 103.2,
}
QUICKSTARTS = {f"quickstart_{task}" for task in ("class", "text", "layout", "semantic", "superres", "inpaint")}
QUICKSTARTS |= {"quickstart_first_stage", "quickstart_superres_first_stage", "quickstart_ldm"}
QUICKSTARTS |= {"quickstart_classifier", "quickstart_hybrid", "quickstart_dit"}
EMOJI = {f"emoji_{part}" for part in ("first_stage", "ldm", "class", "superres", "inpaint")}
EMOJI |= {f"emoji_{part}:{size}" for part in ("f8_first_stage", "captions", "text") for size in (64, 128)}
OURS = QUICKSTARTS | EMOJI | {"demo_first_stage", "demo_class"}


def recipe(name, tiny=False):
    return recipes.load(name + (("_tiny" if ":" in name else ":tiny") if tiny else ""))


def state_shapes(config):
    return setup.task(config), setup.abstract_run(config)[0]


def test_every_recipe_has_a_row():
    assert set(RECIPES) == set(PAPER) | OURS


# Tracing a network at full size takes seconds; these have all its parts. The others are counted in `make test-all`.
COUNTED = {
    "celeba_ldm4", "text2img_ldm8", "imagenet_classifier:f8", "first_stage_kl_f8", "first_stage_vq_f16",
}  # fmt: skip


def all_but(slow, names):
    """Names as parameters; those in `slow` are for `make test-all`."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


@pytest.mark.parametrize("name", all_but(PAPER.keys() - COUNTED, sorted(PAPER)))
def test_parameter_count_at_full_size(name):
    config = recipe(name)
    first = build.first_stage_variables(build.first_stage(config), config.data.image_size, 3)
    if config.task == "first_stage":
        parts = [first]
    else:
        frozen = {"first_stage": first, "latent_scale": jax.ShapeDtypeStruct((), jnp.float32)}
        params = jax.eval_shape(setup.task(config).ldm.init, jax.random.key(0), frozen, build.batch_shapes(config, 1))
        parts = [params[name] for name in ("classifier", "unet", "conditioner") if name in params]
    expected = PAPER[name] if isinstance(PAPER[name], tuple) else (PAPER[name],)
    for part, millions in zip(parts, expected):
        digits = len(str(millions).split(".")[1])
        assert round(tree.count(part) / 1e6, digits) == millions, (name, [tree.count(p) for p in parts])


def filled(shapes):
    """Arrays of these shapes: floats small and random, the rest zero. Much faster than running the real init."""
    rng = np.random.default_rng(0)

    def fill(s):
        if jnp.issubdtype(s.dtype, jnp.floating):
            return (rng.standard_normal(s.shape) / np.sqrt(max(s.size // max(s.shape[-1:] or (1,)), 1))).astype(s.dtype)
        return np.zeros(s.shape, s.dtype)

    return jax.tree.map(fill, shapes)


# Recipes whose tiny variant is another one's, or nearly: all is done with them in `make test-all`.
ALIKE = {name for name in RECIPES if ":" in name} - {"celeba_compression:f1"} | {
    "ffhq_ldm4", "lsun_bedrooms_ldm4", "first_stage_vq_f8_n256", "text2img_ldm4", "coco_layout_ldm8",
    "landscapes_semantic_512_ldm4", "places_inpainting_ldm4", "first_stage_kl_f16",
    "first_stage_vq_f16", "first_stage_kl_f8", "first_stage_kl_f32", "first_stage_sd_vae",
    "imagenet_ldm8",
} | OURS  # fmt: skip
# One recipe for each kind of condition and of first stage takes a step here, with one level of its UNet.
STEPS = {
    "imagenet_ldm4", "text2img_ldm8", "openimages_layout_ldm4", "landscapes_semantic_ldm4", "imagenet_superres_ldm4",
    "places_inpainting_big_ldm4", "rdm_768_ldm16", "first_stage_vq_f4", "first_stage_kl_f4",
}  # fmt: skip


def small(config):
    """The UNet's first level and its middle, which has the attention, on pictures of 64 px whose first stage is
    narrow; of a first stage two levels, and the shortest discriminator."""
    if config.task == "first_stage":
        config.first_stage.update(ch_mult=(1, 1), attn_resolutions=())
        config.loss.disc_layers = 1
    else:
        config.first_stage.update(ch_mult=(1,) * len(config.first_stage.ch_mult), attn_resolutions=())
        config.data.image_size = 64
        config.unet.update(channel_mult=(1,), attention_downsamples=())
        config.ema.decay = 0.0


@pytest.mark.parametrize("name", all_but(ALIKE | STEPS, RECIPES))
def test_tiny_variant_builds(name, tmp_path):
    """The whole step is traced, for the batches that the recipe's own pipeline makes. Here only what is not
    stepped in small form anyway."""
    config = recipe(name, tiny=True).unlock()
    config.batch_size = 2
    give_tokenizer(config, tmp_path)
    task, state = state_shapes(config)
    frozen = {} if config.task == "first_stage" else rundir.frozen_shapes(config)
    after, metrics = jax.eval_shape(task.step, state, frozen, examples(config))
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_small_form_takes_a_step(name, tmp_path):
    config = recipe(name, tiny=True).unlock()
    small(config)
    take_a_step(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_tiny_variant_takes_a_step(name, tmp_path):
    config = recipe(name, tiny=True)
    config.unlock()
    take_a_step(config, tmp_path)


def give_tokenizer(config, tmp_path):
    if config.task == "ldm" and config.conditioner.kind == "text":
        source = setup.source(config, train=True)
        texts = [source.annotations(i)["text"] for i in range(len(source))]
        config.conditioner.tokenizer = str(train_wordpiece(texts, 60, tmp_path))
        config.conditioner.null_tokens = (2, 3)


def take_a_step(config, tmp_path):
    config.batch_size = 2
    give_tokenizer(config, tmp_path)
    task, shapes = state_shapes(config)
    state = filled(shapes)
    state = state.replace(opt_state=jax.tree.map(np.zeros_like, state.opt_state))
    frozen = {}
    if config.task != "first_stage":
        first_stage = build.first_stage_variables(build.first_stage(config), config.data.image_size, 3)
        frozen = {"first_stage": filled(first_stage), "latent_scale": np.float32(1.0)}
    batch = examples(config)
    step = compiled(task.step, state, frozen, batch)
    after, metrics = step(state, frozen, batch)
    assert int(after.step) == 1
    assert all(np.isfinite(v) for v in jax.tree.leaves(metrics)), metrics
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, after.params)
    assert any(jax.tree.leaves(moved))
    if config.task == "ldm" and state.params["conditioner"]:
        assert any(jax.tree.leaves(moved["conditioner"]))
    values = jax.eval_shape(lambda *a: task.evaluate(*a, 0), after, frozen, batch)
    assert all(v.shape == (2,) for v in values.values())


def examples(config):
    """A batch of the recipe's own pipeline, with exactly the fields that `build.batch_shapes` promises."""
    source, transform = setup.source(config, train=True), setup.transform(config, train=True)
    rows = [transform(source[i], np.random.default_rng(i)) for i in range(2)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    expected = build.batch_shapes(config, 2)
    found = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert {n: found[n] for n in expected} == {n: (s.shape, s.dtype) for n, s in expected.items()}
    assert set(found) - set(expected) <= {"label"}
    return batch


@pytest.mark.parametrize("name", recipes.names())
def test_docstring_is_the_recipe(name):
    text = ast.get_docstring(ast.parse(recipes.find(name).read_text()))
    assert f"--config=configs/{name}.py" in text and "--workdir=" in text


def test_unknown_variant_names_the_known():
    with pytest.raises(ValueError, match="tiny"):
        recipe("celeba_ldm4:small")
