"""Operations by the kind of their products (the numbers themselves: tests/test_benchmarks.py)."""

import jax
import jax.numpy as jnp

from ldm_jax.training import flops


def test_kinds_of_products():
    x = jnp.zeros((2, 3))

    def fn(x):
        half = x.astype(jnp.bfloat16) @ x.T.astype(jnp.bfloat16)
        exact = jnp.matmul(x, x.T, precision="highest")
        parts = jax.lax.scan(lambda c, _: (c, x @ x.T), 0, None, length=5)[1]
        return half, exact, parts

    product = 2 * 2 * 2 * 3
    assert flops.count_by_kind(jax.make_jaxpr(fn)(x)) == {"half": product, "exact": product, "float32": 5 * product}
