"""Mesh and placement rules."""

from typing import ClassVar

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ldm_jax.training import sharding


class FakeMesh:
    """Enough of a (2, 4) mesh for the rules."""

    shape: ClassVar = {"data": 2, "fsdp": 4}
    size = 8


def test_large_leaves_are_split_along_their_largest_divisible_axis():
    spec = sharding.leaf_spec((3, 3, 256, 512), FakeMesh())
    assert spec == PartitionSpec(None, None, None, "fsdp")
    assert sharding.leaf_spec((3, 3, 256, 511), FakeMesh()) == PartitionSpec(None, None, "fsdp", None)


def test_small_or_odd_leaves_are_copied():
    assert sharding.leaf_spec((256,), FakeMesh()) == PartitionSpec()
    assert sharding.leaf_spec((333, 777), FakeMesh()) == PartitionSpec()


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
    with pytest.raises(ValueError, match="does not cover"):
        sharding.make_mesh(data=jax.device_count() + 1)
    assert isinstance(sharding.make_mesh(), Mesh)


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="batch_size=12 is not a multiple of 8 devices x 1"):
        sharding.check_batch(12, FakeMesh(), 1)
    sharding.check_batch(16, FakeMesh(), 2)


def test_put_keeps_the_rows():
    mesh = sharding.make_mesh()
    image = np.arange(jax.device_count() * 2.0)
    assert np.array_equal(sharding.put({"image": image}, mesh)["image"], image)
