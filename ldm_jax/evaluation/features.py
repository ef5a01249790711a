"""Pictures to features, in batches, on all devices of this machine.

    extract = features.load("inception")                     # weights/inception.safetensors
    found = extract(images, ("2048", "logits_unbiased"))     # {tap: float32 [N, ...]}

The batch is split over the devices and its last one is filled up, so that there is one program; what comes out does not
depend on the size of a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled
from jaxtyping import Float, UInt8

from ldm_jax import tree
from ldm_jax.arrays import Array
from ldm_jax.errors import UsageError
from ldm_jax.evaluation import networks, weights
from ldm_jax.evaluation.layers import Tree
from ldm_jax.evaluation.networks import FeatureNetwork
from ldm_jax.evaluation.resize import RESIZES

Pictures = Iterable[np.ndarray]  # uint8 [H,W,3] each, of any sizes; an array [N,H,W,3] is one


class Extractor:
    """A network with its parameters, ready for pictures."""

    def __init__(
        self,
        network: FeatureNetwork,
        params: Tree,
        resize: str | None = None,
        batch: int = 64,
        devices: Sequence[jax.Device] | None = None,
    ):
        """resize: another than the network's usual one. batch: pictures at a time, rounded up to a multiple of the
        devices (default: all of this process). Raises UsageError for an unknown resize, and a batch below 1.
        """
        networks.check_resize(resize or network.resize)
        if batch < 1:
            raise UsageError(f"batch={batch} must be 1 at least")
        devices = jax.local_devices() if devices is None else list(devices)
        mesh = Mesh(np.array(devices), ("batch",))
        self.network = network
        self.resize = RESIZES[resize or network.resize]
        self.batch = -(-batch // len(devices)) * len(devices)
        self._split = NamedSharding(mesh, PartitionSpec("batch"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        size = (network.size, network.size)
        self._resized = jax.jit(lambda images: self.resize(images, size))
        self.digest = tree.digest(params)
        self._programs: dict[tuple[str, ...], Compiled] = {}

    @property
    def held(self) -> int:
        """Bytes of each device that the parameters take."""
        return sum(x.nbytes for x in jax.tree.leaves(self._params))

    @property
    def taken(self) -> int:
        """Bytes of each device that pictures take while they are compared: a batch, and the next one."""
        return 2 * self.batch // self._split.mesh.size * self.network.size**2 * 3 * 4

    def _features(self, params: Tree, x: Float[Array, "N H W 3"], taps: tuple[str, ...]) -> dict[str, Array]:
        return self.network.module.apply(params, self.network.normalise(x), taps)

    def compile(self, taps: tuple[str, ...]) -> Compiled:
        """The program that gives these taps of a batch; it stays."""
        if taps not in self._programs:
            size = self.network.size
            x = jax.ShapeDtypeStruct((self.batch, size, size, 3), np.float32, sharding=self._split)
            jitted = jax.jit(self._features, static_argnames="taps")
            self._programs[taps] = jitted.lower(self._params, x, taps).compile()
        return self._programs[taps]

    def __call__(self, images: Pictures, taps: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """{tap: float32 [N, ...]} of all pictures (taps: default the one that is compared).

        Raises UsageError for pictures that are not uint8 [H,W,3], for none at all, and for unknown taps.
        """
        batches = list(self.stream(images, taps))
        if not batches:
            raise UsageError(f"{self.network.name}: there are no pictures")
        return {tap: np.concatenate([batch[tap] for batch in batches]) for tap in batches[0]}

    def stream(self, images: Pictures, taps: Sequence[str] | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The same batch by batch, in order, for more pictures than memory holds."""
        taps = tuple(taps or (self.network.tap,))
        if unknown := set(taps) - set(self.network.taps):
            raise UsageError(
                f"{self.network.name} has no taps {sorted(unknown)}; it has {', '.join(self.network.taps)}"
            )
        pending = None  # the device computes a batch while the host prepares the next
        for chunk in _chunks(images, self.batch):
            count = len(chunk)
            result = self.compile(taps)(self._params, self._prepared(chunk))
            if pending is not None:
                yield _fetch(*pending)
            pending = result, count
        if pending is not None:
            yield _fetch(*pending)

    def _prepared(self, images: list[UInt8[np.ndarray, "H W 3"]]) -> Float[Array, "N h w 3"]:
        """A whole batch, resized, split over the devices; 0..255."""
        images = images + images[-1:] * (self.batch - len(images))
        size = (self.network.size, self.network.size)
        if self.resize.on_host:
            return jax.device_put(np.concatenate([self.resize(image[None], size) for image in images]), self._split)
        if len({image.shape for image in images}) == 1:
            return jax.device_put(self._resized(jax.device_put(np.stack(images), self._split)), self._split)
        return jax.device_put(np.concatenate([self._resized(image[None]) for image in images]), self._split)


def _fetch(result: dict[str, Array], count: int) -> dict[str, np.ndarray]:
    return {tap: np.asarray(value)[:count] for tap, value in result.items()}


def _chunks(images: Pictures, size: int) -> Iterator[list[np.ndarray]]:
    images = iter(images)
    while chunk := list(islice(images, size)):
        for image in chunk:
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                found = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
                raise UsageError(f"features are those of pictures uint8 [H,W,3], not {found}")
        yield chunk


def load(
    name: str,
    folder: str | Path = weights.FOLDER,
    resize: str | None = None,
    batch: int = 64,
    devices: Sequence[jax.Device] | None = None,
) -> Extractor:
    """The network `name` (of another layer: "inception:768") with its weights from the folder. Raises Missing, with how
    to get them, where none are."""
    network = networks.find(name)
    params = network.params(weights.read(name.partition(":")[0], folder))
    return Extractor(network, jax.tree.map(jnp.asarray, params), resize, batch, devices)
