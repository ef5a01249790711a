"""Names of arrangements of chips, and which link a collective takes."""

import pytest

from ldm_jax.errors import UsageError
from ldm_jax.training import chips


@pytest.mark.parametrize(
    "name, kind, number",
    [("v5e:16x16", "v5e", 256), ("v5p:2x2x4", "v5p", 16), ("h100x8", "h100", 8), ("v4:2x2x1", "v4", 4)],
)
def test_topologies(name, kind, number):
    found = chips.topology(name)
    assert (found.chip, found.number) == (chips.CHIPS[kind], number) and found.is_tpu == kind.startswith("v")


@pytest.mark.parametrize("name", ["v5e", "v5e:0x4", "h100", "h100x0", "b7x8", "h100x8x8", "v5e:16", "8xh100"])
def test_other_names_are_refused_with_examples(name):
    with pytest.raises(UsageError, match=f"--topology={name} .*v5e:16x16.*h100x8"):
        chips.topology(name)


def test_gpus_of_several_nodes_send_through_their_network_cards():
    h100 = chips.CHIPS["h100"]
    assert h100.rate(range(8)) == h100.rate((8, 9)) == 450e9
    assert h100.rate(range(16)) == 8 * 50e9  # eight cards a node
    assert h100.rate((0, 8, 16)) == 50e9  # one
    assert chips.CHIPS["v5e"].rate(range(256)) == 200e9
