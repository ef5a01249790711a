"""EfficientNet-Lite0 against plain numpy with made-up weights."""

import jax
import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import efficientnet_lite
from tests.evaluation import plain

# Written out once more: depthwise size, stride, expansion, width in, width out.
BLOCKS = [
    (3, 1, 1, 32, 16), (3, 2, 6, 16, 24), (3, 1, 6, 24, 24), (5, 2, 6, 24, 40), (5, 1, 6, 40, 40), (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80), (3, 1, 6, 80, 80), (5, 1, 6, 80, 112), (5, 1, 6, 112, 112), (5, 1, 6, 112, 112),
    (5, 2, 6, 112, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (3, 1, 6, 192, 320),
]  # fmt: skip


def made_up():
    random, state = np.random.default_rng(0), {"_fc.weight": np.zeros((2, 3)), "_fc.bias": np.zeros(2)}

    def add(convolution, norm, *shape):
        state[f"{convolution}.weight"] = plain.made_up_filter(random, *shape)
        state.update(plain.made_up_norm(random, norm, shape[0]))

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    for i, (size, _, expansion, before, width) in enumerate(BLOCKS):
        inside, name = before * expansion, f"_blocks.{i}."
        if expansion > 1:
            add(name + "_expand_conv", name + "_bn0", inside, before, 1, 1)
        add(name + "_depthwise_conv", name + "_bn1", inside, 1, size, size)
        add(name + "_project_conv", name + "_bn2", width, inside, 1, 1)
    add("_conv_head", "_bn1", 1280, 320, 1, 1)
    return state


def forward(state, x):
    def step(x, convolution, norm, stride=1, active=True):
        weight = state[f"{convolution}.weight"]
        padding = [plain.same(side, weight.shape[-1], stride) for side in x.shape[1:]]
        x = plain.norm(plain.convolve(x, weight, None, stride, padding), state, norm)
        return np.clip(x, 0, 6) if active else x

    x = step(x, "_conv_stem", "_bn0", 2)
    for i, (_, stride, expansion, before, width) in enumerate(BLOCKS):
        start, name = x, f"_blocks.{i}."
        if expansion > 1:
            x = step(x, name + "_expand_conv", name + "_bn0")
        x = step(x, name + "_depthwise_conv", name + "_bn1", stride)
        x = step(x, name + "_project_conv", name + "_bn2", active=False)
        x = x + start if stride == 1 and before == width else x
    return step(x, "_conv_head", "_bn1").mean((1, 2))


def test_equals_plain_numpy():
    """Sides that are no powers of two, so that the paddings differ at both ends."""
    state, x = made_up(), np.random.default_rng(1).standard_normal((2, 37, 50, 3)).astype(np.float32)
    found = jax.jit(efficientnet_lite.EfficientNetLite0().apply)(efficientnet_lite.params(state), x)["pooled"]
    for ours, image in zip(found, x):
        expected = forward(state, image.transpose(2, 0, 1).astype(np.float64))
        np.testing.assert_allclose(ours, expected, atol=1e-4 * expected.std())


def test_what_is_refused():
    state = made_up()
    del state["_blocks.4._bn2.bias"]
    with pytest.raises(UsageError, match=r"missing \(1\):\n  _blocks.4._bn2.bias"):
        efficientnet_lite.params(state)
