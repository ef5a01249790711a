"""The network that sees only the condition: its output, what it refuses, and how it teaches a text encoder."""

import jax
import numpy as np
import pytest

from ldm_jax import build, recipes
from ldm_jax.errors import ConfigError
from ldm_jax.models.conditional_mean import ConditionalMean


def test_a_linear_map_of_the_mean_token_whatever_z_and_t():
    rng = np.random.default_rng(0)
    z, context = np.float32(rng.standard_normal((2, 4, 6, 3))), np.float32(rng.standard_normal((2, 5, 7)))
    network = ConditionalMean()
    variables = network.init(jax.random.key(0), z, np.int32([3, 700]), context)
    out = network.apply(variables, z, np.int32([3, 700]), context)
    weights = variables["params"]["out"]
    expected = (context.mean(1) @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])).reshape(z.shape)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_array_equal(out, network.apply(variables, 0 * z, np.int32([0, 0]), context))
    with pytest.raises(ValueError, match="needs a context"):
        network.init(jax.random.key(0), z, np.int32([3, 700]))


@pytest.mark.parametrize(
    ("name", "prediction", "found"), [("quickstart_ldm", "x0", "'none'"), ("emoji_captions", "v", "'v'")]
)
def test_needs_a_context_and_the_prediction_x0(name, prediction, found):
    config = recipes.load(f"{name}:tiny").unlock()
    config.network.kind, config.diffusion.prediction = "mean", prediction
    with pytest.raises(ConfigError, match=f"needs a condition with a context.*{found}"):
        build.denoiser(config)
