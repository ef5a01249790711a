"""Mesh and placement rules."""

from types import SimpleNamespace
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


def fake_devices(platform, number, slices=1):
    return [SimpleNamespace(platform=platform, id=i, slice_index=i * slices // number) for i in range(number)]


def test_slices_are_counted_for_tpus_alone():
    assert sharding.number_of_slices(fake_devices("tpu", 8, slices=2)) == 2
    assert sharding.number_of_slices(fake_devices("gpu", 8, slices=2)) == 1


def test_fsdp_stays_within_a_slice(monkeypatch):
    asked = []

    def hybrid(inside, between, devices, **_):
        asked.append((inside, between))
        return np.array(devices, object).reshape(4, 2)

    monkeypatch.setattr(sharding.mesh_utils, "create_hybrid_device_mesh", hybrid)
    monkeypatch.setattr(sharding, "Mesh", lambda placed, axes, axis_types: (placed.shape, axes))
    assert sharding.make_mesh(-1, 2, fake_devices("tpu", 8, slices=2)) == ((4, 2), ("data", "fsdp"))
    assert asked == [((2, 2), (2, 1))]
    with pytest.raises(ValueError, match=r"2 TPU slices.*divisor of the 4 devices of a slice"):
        sharding.make_mesh(-1, 8, fake_devices("tpu", 8, slices=2))


def test_a_host_has_the_rows_of_its_devices_wherever_they_stand():
    """As in a square of chips of which each host has a square of four."""
    hosts = [0, 0, 1, 1, 0, 0, 1, 1]
    mesh = SimpleNamespace(devices=np.array([[SimpleNamespace(process_index=h)] for h in hosts]), size=8)
    assert sharding.own_rows(mesh, 16, 0).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert sharding.own_rows(mesh, 16, 1).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert sharding.own_rows(sharding.make_mesh(), 6).tolist() == list(range(6))


def test_without_a_mesh_nothing_is_said():
    x = {"a": np.ones((2, 3))}
    assert sharding.rows(x) is x and sharding.like_params(x) is x
