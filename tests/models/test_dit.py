"""The transformer: against an independent implementation, at the start, with every kind of condition, and its size."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ldm_jax import build, recipes, tree
from ldm_jax.convert import dit as layout
from ldm_jax.models.dit import DiT, positions
from ldm_jax.training import sharding
from tests.fast import compiled

SMALL = dict(width=16, depth=1, num_heads=2, patch_size=2, out_channels=4)
Z, T = np.float32(np.random.default_rng(1).standard_normal((2, 4, 6, 4))), np.int32([3, 700])


def shapes_of(module, z=Z, context=None):
    return jax.eval_shape(module.init, jax.random.key(0), z, T[: len(z)], context)["params"]


def drawn(shapes):
    """Numbers for all parameters, so that what starts at zero is seen, too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: np.float32(rng.standard_normal(s.shape) / max(s.shape[0], 4) ** 0.5), shapes)


@pytest.fixture(scope="module")
def golden():
    """What make_dit_golden.py wrote."""
    with np.load(Path(__file__).parent / "dit.npz") as file:
        return {name: file[name] for name in file.files}


def test_equals_an_independent_implementation(golden):
    """Weights by the released names, the noise [B,h,w,4] and, as the first of two halves, no variance."""
    state = {name.removeprefix("weights."): a for name, a in golden.items() if name.startswith("weights.")}
    model = DiT(**SMALL | {"depth": 2}, learn_sigma=True, context_dim=16, context="adaln")
    z, labels = golden["x"].transpose(0, 2, 3, 1), golden["y"]
    unet = shapes_of(model, z, np.zeros((2, 1, 16), np.float32))
    table = jax.ShapeDtypeStruct((11, 16), jnp.float32)
    template = {"unet": unet, "conditioner": {"embedding": {"embedding": table}}}
    weights, beside = layout.split(state, template, positions(4, 4, 16)[None])
    assert beside.keys() == {"pos_embed"}
    np.testing.assert_allclose(beside["pos_embed"][0], positions(4, 4, 16), atol=1e-6)
    context = weights["conditioner"]["embedding"]["embedding"][labels][:, None]
    args = {"params": weights["unet"]}, z, golden["t"], context
    out = compiled(model.apply, *args)(*args)
    expected = golden["out"].transpose(0, 2, 3, 1)[..., :4]
    assert out.shape == expected.shape and out.dtype == np.float32 and expected.std() > 0.3
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())


def test_starts_at_zero_with_blocks_that_change_nothing():
    """All biases, the last layer, and what a block adds: its gates, and the projection of its cross-attention."""
    context, key = np.ones((2, 3, 8), np.float32), jax.random.key(0, impl="unsafe_rbg")  # compiles faster
    init = DiT(**SMALL, context_dim=8).init
    params = tree.flatten(compiled(init, key, Z, T, context)(key, Z, T, context)["params"])
    zero = {name for name, leaf in params.items() if not np.any(leaf)}
    kernels = {"blocks_0/adaLN_modulation_1", "blocks_0/cross_attn/proj", "final_layer/adaLN_modulation_1"}
    kernels |= {"final_layer/linear"}
    assert zero == {f"{name}/kernel" for name in kernels} | {name for name in params if name.endswith("bias")}


@pytest.fixture(scope="module")
def crossed():
    """(model with cross-attention, its program, its arguments: latents that are no square and 3 tokens)."""
    model, context = DiT(**SMALL, context_dim=8), np.float32(np.random.default_rng(2).standard_normal((2, 3, 8)))
    args = {"params": drawn(shapes_of(model, Z, context))}, Z, T, context
    return model, compiled(model.apply, *args), args


def test_the_context_and_places_matter(crossed):
    _, apply, (params, _, _, context) = crossed
    z = np.ones(Z.shape, np.float32)
    out = apply(params, z, T, context)
    assert out.shape == Z.shape
    assert not np.allclose(out, apply(params, z, T, 2 * context[:, ::-1]))
    assert not np.allclose(out[:, :2, :2], out[:, 2:, :2]) and not np.allclose(out[:, :2, :2], out[:, :2, 2:4])


def test_gradients_recomputed_and_bfloat16(crossed):
    """`remat` has the same parameters and output, every parameter has a gradient, and half precision is near."""
    model, apply, args = crossed
    exact, again = apply(*args), model.clone(remat=True)

    def loss(params, *args):
        out = again.apply(params, *args, train=True)
        return jnp.mean(out**2), out

    (_, out), gradient = compiled(jax.value_and_grad(loss, has_aux=True), *args)(*args)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)
    assert not tree.compare(gradient, args[0])
    assert all(np.any(g) for g in jax.tree.leaves(gradient)), "a parameter that nothing reads"
    rough = compiled(model.clone(dtype=jnp.bfloat16).apply, *args)(*args)
    assert rough.dtype == jnp.float32
    assert np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 3e-2


def test_mistakes_are_named():
    def init(size=8, tokens=None, **fields):
        return shapes_of(DiT(**{**SMALL, **fields}), jnp.zeros((1, size, size, 4)), tokens)

    with pytest.raises(ValueError, match="7x7 does not divide into patches of patch_size=2"):
        init(size=7)
    with pytest.raises(ValueError, match="width=18 must be a multiple of 4 and of num_heads=2"):
        init(width=18)
    with pytest.raises(ValueError, match="context of width 5, but context_dim=None"):
        init(tokens=jnp.zeros((1, 3, 5)))
    with pytest.raises(ValueError, match="context of 3 tokens: context='adaln' takes one"):
        init(tokens=jnp.zeros((1, 3, 5)), context_dim=5, context="adaln")
    with pytest.raises(ValueError, match="context='pooled' is not one of adaln, cross_attention"):
        init(context="pooled")


CONDITIONS = {"quickstart_ldm": None, "quickstart_class": "context_in", "quickstart_text": "cross_attn",
              "quickstart_superres": None, "quickstart_hybrid": "cross_attn"}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
def test_any_recipe_can_have_a_transformer(name):
    """config.network.kind=dit: no, one-token and other contexts, and joined channels. By shapes."""
    config = recipes.load(f"{name}:tiny", ["--config.network.kind=dit", "--config.dit.width=64"])
    model, size, channels = build.denoiser(config), *build.latent_shape(config)[1:]
    frame = build.frame(config)
    assert isinstance(model, DiT) and frame.divisor == 2
    width, length = model.context_dim, 1 if model.context == "adaln" else 5
    context = None if width is None else jnp.zeros((1, length, width))
    params = tree.flatten(shapes_of(model, jnp.zeros((1, size, size, channels + 2)), context))
    assert params["x_embedder_proj/kernel"].shape == (2, 2, channels + 2, 64)
    assert params["final_layer/linear/kernel"].shape == (64, 4 * channels)
    found = {part for part in ("context_in", "cross_attn") if any(f"{part}/" in leaf for leaf in params)}
    assert found == ({CONDITIONS[name]} - {None})


def test_parameters_are_sharded():
    """Under fsdp=8 all large arrays of DiT-XL/2 are split: of a block and what is around it less than 1 % is whole."""
    config = recipes.load("imagenet_dit_xl2")
    shapes = shapes_of(build.denoiser(config).clone(depth=1), jnp.zeros((1, 32, 32, 4)), jnp.zeros((1, 1, 1152)))

    mesh = SimpleNamespace(shape={"data": 1, "fsdp": 8})
    whole = [s.size for s in jax.tree.leaves(shapes) if sharding.leaf_spec(s.shape, mesh) == PartitionSpec()]
    assert 0 < sum(whole) < 0.01 * tree.count(shapes)
