"""The GPU's forms, without a GPU: group normalisation, and the choice of fused attention, where cuDNN is refused and
JAX's own form stands in for it."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from ldm_jax.models import kernels
from ldm_jax.models.kernels import gpu


@pytest.fixture(autouse=True)
def pretend(monkeypatch):
    gpu.works.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    yield
    gpu.works.cache_clear()


def arrays(dtype=jnp.bfloat16, length=128):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal((2, 3, length, 16)), dtype) for _ in range(3)]


def test_falls_back_and_says_so_where_the_kernel_does_not_work(caplog):
    q, k, v = arrays()
    assert not gpu.attends(q, k)
    assert "heads of 16, bfloat16: not fused" in caplog.text
    gpu.attends(q, k)
    assert len(caplog.records) == 1  # tried once
    assert kernels.attend(q, k, v).shape == q.shape


def test_taken_where_it_works_in_the_middle_of_a_trace(monkeypatch, caplog):
    q, k, v = arrays()
    plain = np.asarray(kernels.attend(q, k, v), np.float32)
    gpu.works.cache_clear()
    used, real = [], gpu.attend

    def stand_in(q, k, v, implementation="cudnn"):
        used.append(q.shape)
        return real(q, k, v, implementation="xla")

    monkeypatch.setattr(gpu, "attend", stand_in)
    fused = np.asarray(jax.jit(kernels.attend)(q, k, v), np.float32)
    assert q.shape in used and "cuDNN's fused kernel (relative error of gradients 0)" in caplog.text
    np.testing.assert_allclose(fused, plain, atol=0.03)


def test_refused_when_the_numbers_differ(monkeypatch, caplog):
    real = gpu.attend
    monkeypatch.setattr(gpu, "attend", lambda q, k, v, how: real(q, k, v, "xla") * (1.2 if how == "cudnn" else 1))
    q, k, _ = arrays()
    assert not gpu.attends(q, k) and "not fused (relative error" in caplog.text


@pytest.mark.parametrize("dtype, queries, keys", [(jnp.float32, 128, 128), (jnp.bfloat16, 128, 8),
                                                  (jnp.bfloat16, 77, 128), (jnp.bfloat16, 128, 77)])  # fmt: skip
def test_not_even_tried(monkeypatch, dtype, queries, keys):
    monkeypatch.setattr(gpu, "works", lru_cache(lambda head_dim, dtype: True))
    assert gpu.attends(*arrays()[:2])
    assert not gpu.attends(arrays(dtype, queries)[0], arrays(dtype, keys)[1])


@pytest.mark.parametrize("host", [0, 1])
@pytest.mark.parametrize("answer", [True, False])
def test_several_hosts_take_the_answer_of_the_first(monkeypatch, host, answer):
    tried, sent = [], []

    def broadcast(value):
        with jax.set_mesh(jax.make_mesh((1,), ("hosts",))):  # as the real one: refused in the middle of a trace
            sent.append(bool(value))
        return np.asarray(answer)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: host)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(gpu, "_tried", lambda head_dim, dtype: tried.append((head_dim, dtype)) or answer)
    found = []

    def traced(q, k):
        found.append(gpu.attends(q, k))
        return q

    q, k, _ = arrays()
    jax.jit(traced)(q, k)
    assert found == [answer] and gpu.attends(q, k) == answer
    assert tried == [(16, "bfloat16")] * (host == 0)
    assert sent == [answer and host == 0]  # once: then every host keeps the answer


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_norm_and_its_gradients_are_those_of_the_formula(dtype, mean):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 8, 8, 96)) * np.linspace(0.3, 3, 96) + rng.standard_normal(96) + mean
    x, weights = jnp.asarray(x, dtype), jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    scale, bias = jnp.asarray([1.0, 0.0])[:, None] + 0.1 * jnp.asarray(rng.standard_normal((2, 96)), jnp.float32)

    def loss(x, scale, bias):
        y = kernels.group_norm(x, scale, bias, 32, 1e-5, dtype)
        return jnp.sum(jnp.sin(y.astype(jnp.float32)) * weights), y

    (_, ours), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    with kernels.plain():
        (_, plain), expected = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    assert ours.dtype == plain.dtype == dtype
    for found, wanted in zip((ours, *grads), (plain, *expected)):
        found, wanted = (np.asarray(a, np.float32) for a in (found, wanted))
        assert np.linalg.norm(found - wanted) <= 0.01 * np.linalg.norm(wanted)


def test_norm_of_a_channel_whose_first_position_is_far_out():
    x = np.random.default_rng(0).standard_normal((1, 4096, 32))
    x[:, 0] = 1e4
    x = jnp.asarray(x, jnp.bfloat16)
    found = kernels.group_norm(x, jnp.ones(32), jnp.zeros(32), 32, 1e-5, x.dtype)
    with kernels.plain():
        wanted = kernels.group_norm(x, jnp.ones(32), jnp.zeros(32), 32, 1e-5, x.dtype)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (found, wanted)), rtol=0.01, atol=0.01)


def test_norm_keeps_nothing_in_float32_for_its_gradient():
    x = jnp.ones((2, 64, 32), jnp.bfloat16)
    _, pull = jax.vjp(lambda x: kernels.group_norm(x, jnp.ones(32), jnp.zeros(32), 32, 1e-5, x.dtype), x)
    assert all(a.dtype == jnp.bfloat16 for a in jax.tree.leaves(pull) if a.size == x.size)


def test_norm_of_float32_is_the_formula(monkeypatch):
    monkeypatch.setattr(gpu, "group_norm", None)
    x = jnp.ones((2, 4, 32))
    assert kernels.group_norm(x, jnp.ones(32), jnp.zeros(32), 32, 1e-5, x.dtype).shape == x.shape
