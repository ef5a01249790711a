"""The registry: names, widths, and what a distance is called."""

import jax
import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation import networks
from ldm_jax.evaluation.resize import RESIZES


def test_fid_is_inceptions_2048_alone():
    called = {network.distance_name(tap) for network in networks.NETWORKS.values() for tap in network.taps}
    assert networks.find("inception").distance_name() == "FID"
    assert {name for name in called if not name.startswith("FD-")} == {"FID", "sFID"}
    assert networks.find("inception").distance_name("64") == "FD-inception-64"
    assert networks.find("dinov2_vitl14").distance_name() == "FD-dinov2_vitl14"


def test_another_layer():
    found = networks.find("inception:768")
    assert (found.name, found.tap, found.width) == ("inception-768", "768", 768)
    assert found.distance_name() == networks.find("inception").distance_name("768") == "FD-inception-768"
    assert networks.find("inception:2048") is networks.find("inception")
    for tap in ("spatial", "2049"):
        with pytest.raises(UsageError, match=f"inception has no layer '{tap}' to compare; there are 64, 192, 768, "):
            networks.find(f"inception:{tap}")


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_gives_what_it_says(name):
    network = networks.find(name)
    x = jax.ShapeDtypeStruct((2, network.size, network.size, 3), np.float32)
    taps = tuple(network.taps)
    found, _ = jax.eval_shape(
        lambda x: network.module.init_with_output(jax.random.key(0), network.normalise(x), taps), x
    )
    assert {tap: value.shape[1:] for tap, value in found.items()} == dict(network.taps)
    assert network.resize in RESIZES and network.width == int(np.prod(network.taps[network.tap]))


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="'resnet'; there are inception, "):
        networks.find("resnet")
    with pytest.raises(UsageError, match="'lanczos'; there are tf1_bilinear, "):
        networks.check_resize("lanczos")
