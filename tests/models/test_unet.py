"""The UNet against the original: every option in small; full sizes by forward passes. Parameters: test_configs.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import tree
from ldm_jax.convert.names import torch_key
from ldm_jax.models import kernels
from ldm_jax.models.unet import UNet
from tests.golden import weights
from tests.golden_tools import load, nchw, nhwc, rel, strided, to_flax, torch_state

PREFIX = "model.diffusion_model."
CELEBA = UNet(224, 3, 2, (1, 2, 3, 4), (8, 4, 2), num_head_channels=32)
CIN256_V2 = UNet(192, 3, 2, (1, 2, 3, 5), (8, 4, 2), num_heads=1, use_spatial_transformer=True, context_dim=512)
TINY_CASES = (
    "a",
    "classes",
    "headcascade",
    "midonly",
    "nembed",
    "noconv",
    "st",
    "st_heads1",
    "st_nolegacy",
    "updown_ssn",
)
# These two have every kind of layer between them. Gradients and a second size of all: `make test-all`.
GRADIENTS = ("st_heads1", "updown_ssn")


def tiny(case):
    """Our UNet for the original's keyword arguments, which speak of resolutions and carry unused ones."""
    fields = {k: v for k, v in case.meta["kwargs"].items() if k not in ("image_size", "in_channels")}
    fields["attention_downsamples"] = fields.pop("attention_resolutions")
    return UNet(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def shapes_of(module, z, context=None, y=None):
    t = jnp.zeros(z.shape[0], jnp.int32)
    init = lambda key, z, context: module.init(key, z, t, context, y=y)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0), z, context)["params"]


@pytest.mark.parametrize("name", TINY_CASES)
def test_options_equal_the_original(name):
    case, apply, params = made(name)
    if name in GRADIENTS:
        check_with_gradients(case, apply, params)
    else:
        eps = jax.jit(apply)(params, jnp.asarray(nhwc(case.inputs["x"])))
        assert rel(nchw(eps), case.outputs["eps"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TINY_CASES) - set(GRADIENTS)))
def test_gradients_of_options_equal_the_original(name):
    check_with_gradients(*made(name))


def made(name):
    """(case, function of parameters and z, parameters)"""
    case = load(f"mod_unet_tiny_{name}")
    module, t = tiny(case), jnp.asarray(case.inputs["t"])
    context, y = (jnp.asarray(case.inputs[k]) if k in case.inputs else None for k in ("context", "y"))
    state = torch_state(case)
    if module.n_embed is not None:  # the original keeps an output head that it does not use then
        state = {key: value for key, value in state.items() if not key.startswith("out.")}
    params = to_flax(shapes_of(module, jnp.asarray(nhwc(case.inputs["x"])), context, y), state)
    return case, lambda params, z: module.apply({"params": params}, z, t, context, y=y), params


def check_with_gradients(case, apply, params):
    x = {k: jnp.asarray(nhwc(case.inputs[k])) for k in ("x", "x_small", "g")}

    @jax.jit
    def run(params, z):
        eps, vjp = jax.vjp(apply, params, z)
        return eps, vjp(x["g"] / x["g"].size)

    eps, (grads, grad_z) = run(params, x["x"])
    assert rel(nchw(eps), case.outputs["eps"]) < 1e-4
    assert rel(nchw(run(params, x["x_small"])[0]), case.outputs["eps_small"]) < 1e-4
    assert rel(nchw(grad_z), case.outputs["grad_x"]) < 1e-4
    norms = {key: norm for key, norm in case.meta["extra"]["grad_norms"].items() if norm is not None}
    largest = max(norms.values())
    for path, grad in tree.flatten(grads).items():
        # Some exact gradients are zero (a bias before a norm): their round-off is compared to the largest.
        expected = norms[torch_key(path)]
        assert abs(np.linalg.norm(grad) - expected) < 1e-3 * expected + 1e-6 * largest, path


def full_size(name, module, context_of=lambda case: None):
    case = load(name)
    z, t = jnp.asarray(nhwc(case.inputs["x"])), jnp.asarray(case.inputs["t"])
    context = context_of(case)
    params = to_flax(shapes_of(module, z, context), torch_state(case, (PREFIX,), strip=PREFIX))
    eps = jax.jit(module.apply)({"params": params}, z, t, context)
    return rel(strided(nchw(eps), case, "eps"), case.outputs["eps"])


@pytest.mark.slow  # 3.5 GB
def test_celeba_equals_the_original():
    assert full_size("unet_celeba256_32x32", CELEBA) < 1e-4


@pytest.mark.slow
def test_cin256_v2_equals_the_original():
    def context(case):
        table = weights.make_weight("cond_stage_model.embedding.weight", (1001, 512))
        return jnp.asarray(table[case.inputs["class_label"]])[:, None]

    assert full_size("unet_cin256-v2_32x32", CIN256_V2, context) < 1e-4


SMALL = dict(model_channels=32, out_channels=4, num_res_blocks=1, channel_mult=(1, 2), attention_downsamples=(2,))


def drawn(shapes):
    """Drawn in numpy: quicker than compiling init, and the layers that start at zero are seen too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.08 * rng.normal(size=a.shape) + (a.ndim == 1), a.dtype), shapes)


# One level and the middle, which has the attention: for what does not depend on the number of levels.
ONE_LEVEL = SMALL | dict(channel_mult=(1,), attention_downsamples=())


def small(**fields):
    z, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 4)), jnp.array([3, 700])
    module = UNet(**ONE_LEVEL, num_heads=2, **fields)
    return module, {"params": drawn(shapes_of(module, z))}, z, t


def test_bfloat16_computes_near_float32():
    module, variables, z, t = small()
    rough = jax.jit(module.clone(dtype=jnp.bfloat16).apply)(variables, z, t)
    exact = jax.jit(module.apply)(variables, z, t)
    assert rough.dtype == jnp.float32
    assert jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact) < 2e-2


@pytest.mark.slow
def test_celeba_in_bfloat16_stays_near_float32():
    """At full size, on the original's golden; 2e-2 in relative L2 is what 8 bits of mantissa leave."""
    case = load("unet_celeba256_32x32")
    z, t = jnp.asarray(nhwc(case.inputs["x"])), jnp.asarray(case.inputs["t"])
    params = to_flax(shapes_of(CELEBA, z), torch_state(case, (PREFIX,), strip=PREFIX))
    rough = nchw(jax.jit(CELEBA.clone(dtype=jnp.bfloat16).apply)({"params": params}, z, t))
    exact = case.outputs["eps"]
    assert np.linalg.norm(strided(rough, case, "eps") - exact) / np.linalg.norm(exact) < 2e-2


def transposed(jaxpr) -> list[tuple]:
    """(shape, permutation) of every transpose in a program, inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "transpose":
            found.append((equation.invars[0].aval.shape, equation.params["permutation"]))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += transposed(inner)
    return found


def test_no_feature_map_is_transposed():
    """NHWC throughout: the only permutations are those that split tokens [B,T,H*D] into heads [B,H,T,D] and back.

    At the full CelebA size.
    """
    z, t = jax.ShapeDtypeStruct((3, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.int32)
    params = shapes_of(CELEBA, jnp.zeros(z.shape))
    with kernels.plain():  # the CPU's form takes attention apart on purpose
        found = transposed(jax.make_jaxpr(CELEBA.apply)({"params": params}, z, t).jaxpr)
    assert found and all(permutation == (0, 2, 1, 3) for _, permutation in found)
    for shape, _ in found:
        assert {shape[1], shape[2]} & {32 * 32, 16 * 16, 8 * 8} and shape[3] in (32, 3 * 32), shape  # heads of 32


def test_remat_changes_neither_values_names_nor_gradients():
    module, variables, z, t = small(dropout=0.5)
    other = module.clone(remat=True)

    def loss(model, variables):
        out = model.apply(variables, z, t, train=True, rngs={"dropout": jax.random.key(5)})
        return jnp.mean(out**2)

    a, b = (jax.jit(jax.value_and_grad(lambda v, m=m: loss(m, v)))(variables) for m in (module, other))
    assert np.isclose(a[0], b[0], rtol=1e-6)
    assert not tree.compare(a[1], b[1])
    assert all(np.allclose(x, y, atol=1e-6) for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1])))


def test_dropout_only_in_training():
    module, variables, z, t = small(dropout=0.5)
    rngs = {"dropout": jax.random.key(0)}
    apply = jax.jit(module.apply, static_argnames="train")
    still = apply(variables, z, t)
    assert np.array_equal(still, apply(variables, z, t, rngs=rngs))
    assert not np.allclose(still, apply(variables, z, t, train=True, rngs=rngs))


def test_a_context_in_the_time_embedding_is_a_label_there():
    """The same as num_classes, whose table holds what the linear map makes of each class's vector."""
    z, t, y = jax.random.normal(jax.random.key(1), (2, 4, 4, 4)), jnp.array([3, 700]), jnp.array([1, 0])
    vectors = jax.random.normal(jax.random.key(2), (2, 8))
    module = UNet(**ONE_LEVEL, num_heads=2, context_dim=8, context="embedding")
    params = drawn(shapes_of(module, z, vectors[y][:, None]))
    linear = params["context_embed"]
    table = {"label_emb": {"embedding": vectors @ linear["kernel"] + linear["bias"]}}
    labelled = UNet(**ONE_LEVEL, num_heads=2, num_classes=2)
    theirs = {name: part for name, part in params.items() if name != "context_embed"} | table
    out = jax.jit(module.apply)({"params": params}, z, t, vectors[y][:, None])
    np.testing.assert_allclose(out, jax.jit(labelled.apply)({"params": theirs}, z, t, None, y=y), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="context of 2 tokens"):
        shapes_of(module, z, jnp.zeros((2, 2, 8)))
    tokens = vectors[y][:, None] + jnp.array([-1.0, 0.5, 0.5])[None, :, None]  # whose mean they are
    pooled = jax.jit(module.clone(context="pooled").apply)({"params": params}, z, t, tokens)
    np.testing.assert_allclose(pooled, out, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="nothing would attend"):
        shapes_of(module.clone(use_spatial_transformer=True), z, vectors[y][:, None])
    with pytest.raises(ValueError, match="'adaln' is not one of cross_attention, embedding, pooled"):
        shapes_of(UNet(**SMALL, num_heads=2, context="adaln"), z)


def test_starts_at_zero():
    z = jnp.ones((1, 8, 8, 4))
    module = UNet(**ONE_LEVEL, num_heads=2)
    variables = jax.jit(module.init)(jax.random.key(0), z, jnp.array([1]))
    assert not np.any(jax.jit(module.apply)(variables, z, jnp.array([1])))


def test_mistakes_are_named():
    def build(size=8, context=None, y=None, **fields):
        module = UNet(**{**SMALL, "num_heads": 2, **fields})
        return shapes_of(module, jnp.zeros((1, size, size, 4)), context, y)

    with pytest.raises(ValueError, match="multiples of 2"):
        build(size=7)
    with pytest.raises(ValueError, match="set exactly one"):
        build(num_head_channels=16)
    with pytest.raises(ValueError, match="context of width 5"):
        build(context=jnp.zeros((1, 3, 5)))
    with pytest.raises(ValueError, match="context of width None"):
        build(use_spatial_transformer=True, context_dim=5)
    with pytest.raises(ValueError, match="num_classes=None"):
        build(y=jnp.zeros(1, jnp.int32))
