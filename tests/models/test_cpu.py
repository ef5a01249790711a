"""ldm_jax/models/kernels/cpu.py against the plain forms: values, gradients, and what transformations make of them.

Errors are the largest difference over the plain result's standard deviation; float32 rounds at 6e-8, and sums of a
few thousand terms in another order differ by some 1e-6 of it, more where they cancel.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import kernels
from ldm_jax.models.attention import AttentionBlock
from ldm_jax.models.kernels import attend, cpu
from ldm_jax.models.layers import Conv, Downsample, GroupNorm32, ResBlock, Upsample

TOLERANCE = 4e-5
PARTS = "attend", "group_norm", "conv", "up_conv"
pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="formulations for the CPU")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Attention goes block by block from one block of queries on, so that tests are quick."""
    monkeypatch.setattr(cpu, "LONG", 256)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def results(f, *args, transform=lambda f: f):
    """Compiled anew: [f(args), the gradients to all args for a random gradient of f]."""

    def run(*args):
        out, pull_back = jax.vjp(transform(f), *args)
        return out, *pull_back(jnp.asarray(normal(*out.shape, seed=1)))

    return jax.tree.leaves(jax.jit(run)(*args))


def plain(f, *args):
    """`results` without cpu.py."""
    with kernels.plain():
        return results(f, *args)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() <= TOLERANCE * b.std()


def layer(module: nn.Module, *shapes: tuple[int, ...]):
    """(function of parameters and inputs, parameters, inputs) of a module whose parameters are all random."""
    inputs = [normal(*shape) for shape in shapes]
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda s: 0.2 * normal(*s.shape, seed=2), abstract)
    return lambda params, *inputs: module.apply({"params": params}, *inputs), params, *inputs


def count(monkeypatch, name: str) -> list:
    """A list that grows by one whenever cpu.`name` is traced."""
    calls, original = [], getattr(cpu, name)
    monkeypatch.setattr(cpu, name, lambda *args: (calls.append(name), original(*args))[1])
    return calls


@pytest.mark.parametrize("queries, keys, used", [(256, 256, True), (512, 256, True), (256, 512, True), (64, 64, False),
                                                 (300, 256, False), (256, 77, False)])  # fmt: skip
def test_attention(monkeypatch, queries, keys, used):
    calls = count(monkeypatch, "attend")
    args = (3 * normal(2, 3, queries, 8), 3 * normal(2, 3, keys, 8, seed=1), normal(2, 3, keys, 8, seed=2))
    found = results(attend, *args)
    assert bool(calls) == used
    assert_same(found, plain(attend, *args))


def test_short_attention_stays(monkeypatch):
    monkeypatch.undo()
    assert not cpu.attends(jnp.zeros((16, 4, 256, 8)), jnp.zeros((16, 4, 256, 8)))
    assert cpu.attends(jnp.zeros((1, 4, 1024, 8)), jnp.zeros((1, 4, 1024, 8)))


def test_attention_with_large_logits():
    args = (60 * normal(1, 1, 256, 16), 60 * normal(1, 1, 256, 16, seed=1), normal(1, 1, 256, 16, seed=2))
    expected = plain(attend, *args)
    assert all(np.isfinite(a).all() for a in expected)
    # The logits reach thousands, whose last digit is 2e-4: that error is the plain form's as well.
    for a, b in zip(results(attend, *args), expected, strict=True):
        assert np.abs(a - b).max() <= 5e-3 * b.std()


@pytest.mark.parametrize("shape, used", [((1, 64, 64, 32), True), ((1, 6, 5, 96), True), ((1, 3, 3, 32), False),
                                         ((2, 16, 16, 64), False)])  # fmt: skip
def test_group_norm(monkeypatch, shape, used):
    calls = count(monkeypatch, "group_norm")
    f, params, x = layer(GroupNorm32(1e-5), shape)
    args = (params, 3 * x + 5)
    found = results(f, *args)
    assert bool(calls) == used
    assert_same(found, plain(f, *args))


@pytest.mark.parametrize("shape, features, used", [((1, 8, 8, 64), 96, True), ((1, 5, 7, 72), 64, True),
                                                   ((1, 25, 26, 64), 72, True), ((1, 3, 3, 64), 64, True),
                                                   ((1, 8, 8, 64), 3, False), ((2, 8, 8, 64), 64, False)])  # fmt: skip
def test_convolution(monkeypatch, shape, features, used):
    calls = count(monkeypatch, "conv")
    args = layer(Conv(features), shape)
    found = results(*args)
    assert bool(calls) == used
    assert_same(found, plain(*args))


@pytest.mark.parametrize("shape, stride, padding, used", [
    ((1, 8, 8, 256), 1, None, True), ((1, 16, 15, 256), 2, None, True), ((1, 8, 9, 256), 2, (0, 1), True),
    ((3, 2, 9, 8), 1, None, True), ((2, 1, 1, 8), 1, None, True), ((2, 5, 4, 8), 2, None, True),
    ((2, 4, 6, 8), 2, (0, 1), True), ((2, 8, 8, 256), 1, None, False), ((1, 3, 3, 8), 1, None, False),
])  # fmt: skip
def test_convolution_of_few_pixels(monkeypatch, shape, stride, padding, used):
    calls = count(monkeypatch, "conv_by_product")
    args = layer(Conv(shape[-1], stride=stride, padding=padding), shape)
    found = results(*args)
    assert bool(calls) == used
    assert_same(found, plain(*args))


@pytest.mark.parametrize("shape, used", [((1, 8, 9, 32), True), ((3, 5, 7, 32), True), ((2, 16, 16, 4), True),
                                         ((1, 8, 8, 32), False)])  # fmt: skip
def test_upsampling_convolution(monkeypatch, shape, used):
    calls = count(monkeypatch, "up_conv")
    args = layer(Upsample(), shape)
    found = results(*args)
    assert bool(calls) == used
    assert_same(found, plain(*args))


@pytest.mark.parametrize("axis", [0, -1])
def test_argmin(axis):
    x = np.random.default_rng(0).integers(0, 9, (40, 30)).astype(np.float32)  # ties in every row and column
    assert np.array_equal(jax.jit(cpu.argmin, static_argnums=1)(x, axis), x.argmin(axis))


@pytest.mark.parametrize("module", [Conv(64, stride=2), Conv(64, padding=(0, 1), stride=2), Conv(64, (1, 1))])
def test_other_convolutions_stay(monkeypatch, module):
    calls = count(monkeypatch, "conv")
    results(*layer(module, (1, 8, 8, 64)))
    assert not calls


def test_plain_uses_none_of_it(monkeypatch):
    program = blocks()
    calls = [count(monkeypatch, name) for name in PARTS]
    plain(*program)
    assert not any(calls)


def test_bfloat16_stays(monkeypatch):
    calls = [count(monkeypatch, name) for name in (*PARTS, "conv_by_product")]
    jax.eval_shape(*layer(ResBlock(64, dtype=jnp.bfloat16), (1, 16, 16, 64), (1, 8)))
    jax.eval_shape(*layer(Upsample(dtype=jnp.bfloat16), (1, 16, 16, 64)))
    jax.eval_shape(*layer(Downsample(dtype=jnp.bfloat16), (1, 4, 4, 64)))
    jax.eval_shape(*layer(AttentionBlock(2, dtype=jnp.bfloat16), (1, 16, 16, 64)))
    assert not any(calls)


def blocks():
    """An upsampling, a residual block and an attention block in which all of PARTS are used."""
    upsample, upsample_params, x = layer(Upsample(), (1, 8, 16, 64))
    block, block_params, _, emb = layer(ResBlock(64), (1, 16, 32, 64), (1, 8))
    attention, attention_params, _ = layer(AttentionBlock(2), (1, 16, 32, 64))

    def f(params, x, emb):
        return attention(params[2], block(params[1], upsample(params[0], x), emb))

    return f, (upsample_params, block_params, attention_params), x, emb


def test_blocks_use_all_of_it(monkeypatch):
    calls = [count(monkeypatch, name) for name in PARTS]
    f, *args = blocks()
    found = results(f, *args)
    assert all(calls)
    assert_same(found, plain(f, *args))


def test_remat():
    f, *args = blocks()
    assert_same(results(f, *args, transform=jax.checkpoint), plain(f, *args))


def test_vmap():
    f, params, x, emb = blocks()
    many = jax.vmap(f, in_axes=(None, 0, 0))
    args = (params, np.stack([x, -x]), np.stack([emb, 2 * emb]))
    assert_same(results(many, *args), plain(many, *args))


def test_gradient_of_a_gradient():
    f, params, x, emb = blocks()

    def penalty(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(f(jax.tree.map(jnp.asarray, params), x, emb))))(x)

    assert_same(results(penalty, x), plain(penalty, x))
