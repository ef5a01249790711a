"""The norm and the convolution of feature networks, and their parameters."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation.layers import FixedNorm, conv, depthwise, dotted, parameters
from ldm_jax.models import kernels
from tests.evaluation import plain

RANDOM = np.random.default_rng(0)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(5, (1, 3), 2, (0, 1), use_bias=False, name="conv_1")(x)
        return FixedNorm(name="bn")(x)


STATE = {"conv_1.weight": plain.made_up_filter(RANDOM, 5, 3, 1, 3), **plain.made_up_norm(RANDOM, "bn", 5)}


def test_equals_plain_numpy():
    x = RANDOM.standard_normal((2, 7, 8, 3)).astype(np.float32)
    found = Small().apply(parameters(Small(), (7, 8), STATE, dotted), x)
    for ours, image in zip(found, x):
        out = plain.convolve(image.transpose(2, 0, 1), STATE["conv_1.weight"], None, 2, ((0, 0), (1, 1)))
        np.testing.assert_allclose(ours, plain.norm(out, STATE, "bn").transpose(1, 2, 0), atol=1e-5)


def test_a_state_of_another_network_is_refused():
    without = {key: array for key, array in STATE.items() if key != "bn.bias"}
    with pytest.raises(UsageError, match=r"missing \(1\):\n  bn.bias"):
        parameters(Small(), (7, 8), without, dotted)
    with pytest.raises(UsageError, match=r"unexpected \(1\):\n  fc.weight"):
        parameters(Small(), (7, 8), STATE | {"fc.weight": np.zeros(3)}, dotted)


@pytest.mark.parametrize(("size", "stride", "shape"), [(3, 1, (7, 8)), (3, 2, (7, 8)), (5, 1, (6, 6)), (5, 2, (9, 4))])
def test_the_two_forms_of_a_depthwise_convolution_are_equal(size, stride, shape):
    x = RANDOM.standard_normal((2, *shape, 6)).astype(np.float32)
    module = depthwise(size, 6, stride, "a")
    variables = module.init(jax.random.key(0), x)
    shifts, text = module.apply(variables, x), str(jax.make_jaxpr(module.apply)(variables, x))
    with kernels.plain():
        grouped, others = module.apply(variables, x), str(jax.make_jaxpr(module.apply)(variables, x))
    assert "conv_general_dilated" in others and "conv_general_dilated" not in text
    np.testing.assert_allclose(shifts, grouped, atol=1e-5)
