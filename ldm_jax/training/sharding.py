"""Where arrays live: a mesh with the axes `data` and `fsdp`, and one rule for parameters, EMA and optimiser state.

The batch is split over both axes; large parameters, and large frozen arrays, are split over `fsdp` along their largest
divisible axis. Models know nothing of this. `jax.jit` with these shardings inserts the collectives; `rows` and
`like_params` tell it, within a step, what it would otherwise have to guess.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldm_jax.errors import ConfigError

Tree = Any
MIN_SHARDED_SIZE = 2**16  # smaller leaves are copied: gathering them costs more than they hold
AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh over all devices; `data=-1` takes what `fsdp` leaves.

    JAX orders the devices by how they are connected. Of several TPU slices the axis `data` goes over the slower network
    between them, and `fsdp` stays within one. Raises ConfigError when data * fsdp is not the number of devices, or when
    `fsdp` does not fit into a slice.
    """
    devices = jax.devices() if devices is None else list(devices)
    number = len(devices)
    if data == -1 and fsdp > 0 and number % fsdp == 0:
        data = number // fsdp
    if data * fsdp != number:
        raise ConfigError(
            f"mesh data={data} x fsdp={fsdp} does not cover {number} devices; set "
            f"--config.mesh.data=-1 and --config.mesh.fsdp to a divisor of {number}"
        )
    slices = number_of_slices(devices)
    if data % slices:
        raise ConfigError(
            f"mesh data={data} is not a multiple of {slices} TPU slices; set --config.mesh.fsdp to a divisor of the "
            f"{number // slices} devices of a slice"
        )
    types = (AxisType.Auto, AxisType.Auto)
    if slices == 1:
        placed = mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=types)
    inside, between = (data // slices, fsdp), (slices, 1)
    placed = mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=types)


def number_of_slices(devices: Sequence[jax.Device]) -> int:
    """TPU slices that the devices belong to; other devices count as one."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """Raises ConfigError unless the global batch divides into devices and accumulation steps."""
    if batch_size % (mesh.size * accumulate):
        raise ConfigError(
            f"batch_size={batch_size} is not a multiple of {mesh.size} devices x {accumulate} accumulation "
            "steps; change --config.batch_size or --config.optim.accumulate"
        )


def own_rows(mesh: Mesh, batch_size: int, process_index: int | None = None) -> np.ndarray:
    """[B/H] which rows of a batch of B the devices of this one of H processes hold, in ascending order.

    The mesh's order of devices decides: on a TPU it need not keep those of one host together.
    """
    index = jax.process_index() if process_index is None else process_index
    each = batch_size // mesh.size
    places = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == index]
    return (np.array(places, np.int64)[:, None] * each + np.arange(each)).reshape(-1)


def leaf_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Split along the largest axis that `fsdp` divides; small arrays, and those without such an axis, are copied."""
    ways = mesh.shape["fsdp"]
    if ways == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
        if shape[axis] % ways == 0:
            return PartitionSpec(*("fsdp" if a == axis else None for a in range(len(shape))))
    return PartitionSpec()


def tree_shardings(shapes: Tree, mesh: Mesh) -> Tree:
    """Shardings for a tree of arrays or ShapeDtypeStructs, leaf by leaf from its shape."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, leaf_spec(np.shape(leaf), mesh)), shapes)


def placed(shapes: Tree, shardings: Tree) -> Tree:
    """Shapes of arrays that are where `shardings` say."""
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def shapes_of(tree: Tree) -> Tree:
    """Shapes of arrays, with their places."""
    return placed(tree, jax.tree.map(lambda x: x.sharding, tree))


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of the global batch (`own_rows`) -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def bytes_of(tree: Tree) -> int:
    """Bytes of one device, of arrays or ShapeDtypeStructs with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


# Within a traced step. The mesh is the one of `jax.set_mesh`, under which the loop traces it; without one nothing is
# said, so a step can be traced and run by itself.


def like_params(tree: Tree) -> Tree:
    """The same values, each split over the devices as a parameter of its shape is (gradients, and sums of them)."""
    mesh = mesh_of_trace()
    return tree if mesh is None else jax.tree.map(lambda x: _constrain(x, leaf_spec(x.shape, mesh)), tree)


def rows(tree: Tree, axis: int = 0) -> Tree:
    """The same values, their axis of samples split over all devices."""
    if mesh_of_trace() is None:
        return tree
    spec = PartitionSpec(*(None,) * axis, AXES)
    return jax.tree.map(lambda x: _constrain(x, spec), tree)


_constrain = jax.lax.with_sharding_constraint


def mesh_of_trace() -> jax.sharding.AbstractMesh | None:
    """The mesh under which a step is traced; None without one, or with one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if set(AXES) <= set(mesh.axis_names) and mesh.size > 1 else None
