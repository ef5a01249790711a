"""VGG16 against plain numpy, from both kinds of file."""

import jax
import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import vgg
from tests.evaluation import plain

RANDOM = np.random.default_rng(0)
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's convolutions
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def state():
    made, before = {}, 3
    for number, width in zip(NUMBERS, WIDTHS):
        made[f"features.{number}.weight"] = plain.made_up_filter(RANDOM, width, before, 3, 3)
        made[f"features.{number}.bias"] = RANDOM.normal(0, 0.1, width).astype(np.float32)
        before = width
    return made


def test_relu5_3_equals_plain_numpy(state):
    x = RANDOM.standard_normal((2, 32, 48, 3)).astype(np.float32)
    params = vgg.params(state | {"classifier.6.weight": np.zeros(3)}, "relu5_3")
    found = jax.jit(vgg.VGG16().apply)(params, x)["relu5_3"]
    for ours, image in zip(found, x):
        image = image.transpose(2, 0, 1).astype(np.float64)
        for number in NUMBERS:
            if number in (5, 10, 17, 24):
                image = image.reshape(len(image), image.shape[1] // 2, 2, -1, 2).max((2, 4))
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            image = np.maximum(plain.convolve(image, weight, bias, 1, ((1, 1), (1, 1))), 0)
        np.testing.assert_allclose(ours, image.mean((1, 2)), atol=1e-4 * image.std())


def test_the_file_of_lpips_gives_the_same(state):
    kinds = ("weight", "bias")
    theirs = {f"net.{i}.{kind}": state[f"features.{n}.{kind}"] for i, n in enumerate(NUMBERS) for kind in kinds}
    one, other = vgg.params(state, "relu5_3"), vgg.params(theirs | {"lin0.weight": np.zeros(64)}, "relu5_3")
    jax.tree.map(np.testing.assert_array_equal, one, other)
    with pytest.raises(UsageError, match=r"missing \(4\):\n  classifier.0.bias"):
        vgg.params(theirs, "fc2")


def test_shape_of_fc2():
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), np.float32)
    found, _ = jax.eval_shape(lambda x: vgg.VGG16().init_with_output(jax.random.key(0), x, ("fc2",)), x)
    assert found["fc2"].shape == (2, 4096)
