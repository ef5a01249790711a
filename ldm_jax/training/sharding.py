"""Where arrays live: a mesh with the axes `data` and `fsdp`, and one rule for parameters, EMA and optimiser state.

The batch is split over both axes; large parameters are split over `fsdp` along their largest divisible axis.
Models know nothing of this. `jax.jit` with these shardings inserts the collectives.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax.errors import ConfigError

Tree = Any
MIN_SHARDED_SIZE = 2**16  # smaller leaves are copied: gathering them costs more than they hold


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """A (data, fsdp) mesh over all devices; `data=-1` takes what `fsdp` leaves.

    Raises ConfigError when data * fsdp is not the number of devices.
    """
    devices = np.array(jax.devices())
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
    return jax.tree.map(lambda leaf: NamedSharding(mesh, leaf_spec(leaf.shape, mesh)), shapes)


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of the global batch -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
