"""DINOv2 against recorded tokens; both names of its parameters; its positions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import dinov2
from tests.eval_goldens import kinds
from tests.eval_goldens.judge import HERE

# A size of pictures has a program of its own; how they are resized is seen in test_resize.py as well.
SLOW = ("dinov2_vits14_300x200_pil", "dinov2_vits14_network_112x154")
CASES = kinds.names("dinov2_network") + kinds.names("dinov2_features")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_goldens(name):
    assert not kinds.wrong(name)


def random_state(manifest):
    random, shapes = np.random.default_rng(0), json.loads((HERE / "manifests" / f"{manifest}.json").read_text())
    return {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def test_transformers_names_are_the_official_ones():
    theirs = random_state("dinov2_vits14_transformers")
    found, official = dinov2.official_names(theirs), random_state("dinov2_vits14")
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in official.items()}
    layer = "encoder.layer.3.attention.attention"
    np.testing.assert_array_equal(found["blocks.3.attn.qkv.bias"][384:768], theirs[f"{layer}.key.bias"])
    params = dinov2.params("dinov2_vits14", theirs)["params"]
    np.testing.assert_array_equal(
        params["blocks_3"]["attn"]["qkv"]["kernel"][:, 768:], theirs[f"{layer}.value.weight"].T
    )
    np.testing.assert_array_equal(params["norm"]["scale"], theirs["layernorm.weight"])
    np.testing.assert_array_equal(params["blocks_0"]["ls2"]["gamma"], theirs["encoder.layer.0.layer_scale2.lambda1"])


def test_positions():
    """As they are at 37 x 37; a linear ramp stays one away from the edges, with the scale (h + 0.1) / 37."""
    ramp = np.zeros((1, 1 + 37 * 37, 2), np.float32)
    ramp[0, 1:, 0] = np.repeat(np.arange(37), 37)
    ramp[0, 1:, 1] = np.tile(np.arange(37), 37)
    ramp = jnp.asarray(ramp)
    np.testing.assert_array_equal(dinov2.interpolated(ramp, 37, 37), ramp)
    found = np.asarray(dinov2.interpolated(ramp, 16, 20))[0, 1:].reshape(16, 20, 2)
    # Keys' kernel of a = -0.75 does not reproduce ramps exactly; the error is below 0.1 of a step.
    np.testing.assert_allclose(found[2:-2, 0, 0], (np.arange(16) + 0.5)[2:-2] * 37 / 16.1 - 0.5, atol=0.1)
    np.testing.assert_allclose(found[0, 2:-2, 1], (np.arange(20) + 0.5)[2:-2] * 37 / 20.1 - 0.5, atol=0.1)


def test_other_sides_taps_and_networks_are_refused():
    network, key = dinov2.DINOv2(64, 1), jax.random.key(0)
    with pytest.raises(UsageError, match="multiples of 14, not 28x30"):
        network.init(key, jnp.zeros((1, 28, 30, 3)))
    with pytest.raises(UsageError, match="no taps"):
        network.init(key, jnp.zeros((1, 28, 28, 3)), ("logits",))
    with pytest.raises(UsageError, match="other shape"):
        dinov2.params("dinov2_vitb14", random_state("dinov2_vits14"))
