"""Pictures to features: batches, sizes, devices."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from ldm_jax.errors import Missing, UsageError
from ldm_jax.evaluation import features
from ldm_jax.evaluation.networks import FeatureNetwork
from ldm_jax.evaluation.resize import RESIZES

ROOT = Path(__file__).resolve().parents[2]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (11, 9, 12, 3), np.uint8)


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x, taps=("mean",)):
        x = nn.Conv(5, (3, 3), name="conv")(x)
        found = {"mean": x.mean((1, 2)), "map": x}
        return {tap: found[tap] for tap in taps}


NETWORK = FeatureNetwork(
    "tiny", 8, "tf1_bilinear", "mean", {"mean": (5,), "map": (8, 8, 5)}, Tiny(), lambda state: state, lambda x: x / 255
)
PARAMS = Tiny().init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))


def extractor(**options):
    return features.Extractor(NETWORK, PARAMS, **options)


def test_every_batch_gives_the_same():
    expected = Tiny().apply(PARAMS, RESIZES["tf1_bilinear"](IMAGES, (8, 8)) / 255, ("mean", "map"))
    for batch in (1, 4, 11, 64):
        found = extractor(batch=batch)(IMAGES, ("mean", "map"))
        assert found["mean"].dtype == np.float32 and found["map"].shape == (11, 8, 8, 5)
        for tap in found:
            np.testing.assert_allclose(found[tap], expected[tap], atol=1e-6)


@pytest.mark.parametrize("resize", RESIZES)
def test_pictures_of_any_sizes_in_their_order(resize):
    mixed = [IMAGES[0], IMAGES[1, :5], IMAGES[2, :, :6], IMAGES[3], IMAGES[4, :5]]
    extract = extractor(resize=resize, batch=3)
    alone = np.concatenate([extract(image[None])["mean"] for image in mixed])
    np.testing.assert_allclose(extract(iter(mixed))["mean"], alone, atol=1e-6)
    np.testing.assert_allclose(alone[3], extract(IMAGES)["mean"][3], atol=1e-6)


def test_a_stream_comes_batch_by_batch():
    sizes = [len(found["mean"]) for found in extractor(batch=4).stream(iter(IMAGES))]
    assert sizes == [4, 4, 3]
    drawn = []
    stream = extractor(batch=2).stream(drawn.append(i) or image for i, image in enumerate(IMAGES))
    next(stream)
    assert len(drawn) == 4  # no more than the batch at work and the one after it


def test_what_is_refused():
    for images, message in (
        (IMAGES.astype(np.float32), "not float32"),
        (IMAGES[..., :1], r"not uint8 \(9, 12, 1\)"),
        (["a.png"], "not str"),
        ([], "no pictures"),
    ):
        with pytest.raises(UsageError, match=message):
            extractor()(images)
    with pytest.raises(UsageError, match="no taps"):
        extractor()(IMAGES, ("2048",))
    with pytest.raises(UsageError, match="no resize"):
        extractor(resize="nearest")
    with pytest.raises(UsageError, match="batch=0"):
        extractor(batch=0)
    with pytest.raises(UsageError, match="no feature network 'vgg19'"):
        features.load("vgg19")


def test_absent_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(
        Missing, match=r"(?s)inception.safetensors.*https://.*6726825d.*get_weights.py inception --from"
    ):
        features.load("inception", tmp_path)


def test_weights_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(features.networks.NETWORKS, "inception", replace(NETWORK, params=lambda state: PARAMS))
    (tmp_path / "inception.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    found = features.load("inception", tmp_path, batch=4)(IMAGES)["mean"]
    np.testing.assert_allclose(found, extractor()(IMAGES)["mean"], atol=1e-6)
    monkeypatch.setitem(features.networks.NETWORKS["inception"].taps, "other", (4,))
    assert features.load("inception:other", tmp_path).network.name == "inception-other"


DEVICES = """
import jax, numpy as np
from tests.evaluation.test_features import IMAGES, extractor
assert len(jax.devices()) == 8
one = extractor(batch=4, devices=jax.devices()[:1])(IMAGES)["mean"]
eight = extractor(batch=4)(IMAGES)["mean"]
assert one.shape == (11, 5) and one.std() > 0
print(np.abs(one - eight).max() / one.std())
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": ""}
    command = [sys.executable, "-c", DEVICES]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-6
