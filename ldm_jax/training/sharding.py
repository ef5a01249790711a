"""Where arrays live: a mesh with the axes `data` and `fsdp`, and one rule for parameters, EMA and optimiser state.

The batch is split over both axes; large parameters are split over `fsdp` along their largest divisible axis.
Models know nothing of this. `jax.jit` with these shardings inserts the collectives.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax.errors import ConfigError

Tree = Any
Rules = Sequence[tuple[str, PartitionSpec]]
MIN_SHARDED_SIZE = 2**16  # smaller leaves are copied: gathering them costs more than they hold


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh over all devices; `data=-1` takes what `fsdp` leaves.

    Raises ConfigError when data * fsdp is not the number of devices.
    """
    devices = np.array(jax.devices() if devices is None else devices)
    if data == -1 and fsdp > 0 and devices.size % fsdp == 0:
        data = devices.size // fsdp
    if data * fsdp != devices.size:
        raise ConfigError(
            f"mesh data={data} x fsdp={fsdp} does not cover {devices.size} devices; set "
            f"--config.mesh.data=-1 and --config.mesh.fsdp to a divisor of {devices.size}"
        )
    return Mesh(devices.reshape(data, fsdp), ("data", "fsdp"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over every device."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int) -> None:
    """Raises ConfigError unless the global batch divides into devices and accumulation steps."""
    if batch_size % (mesh.size * accumulate):
        raise ConfigError(
            f"batch_size={batch_size} is not a multiple of {mesh.size} devices x {accumulate} accumulation "
            "steps; change --config.batch_size or --config.optim.accumulate"
        )


def leaf_spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = ()) -> PartitionSpec:
    """That of the first rule whose regex matches a part of `name`, otherwise by size."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            return spec
    ways = mesh.shape["fsdp"]
    if ways == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
        if shape[axis] % ways == 0:
            return PartitionSpec(*("fsdp" if a == axis else None for a in range(len(shape))))
    return PartitionSpec()


def tree_shardings(shapes: Tree, mesh: Mesh, rules: Rules = ()) -> Tree:
    """Shardings for a tree of arrays or ShapeDtypeStructs, leaf by leaf from its name and shape."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, leaf_spec(jax.tree_util.keystr(path), leaf.shape, mesh, rules)),
        shapes,
    )


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of the global batch -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
