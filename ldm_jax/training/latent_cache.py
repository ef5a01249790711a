"""Writes the cached latents that data/latents.py reads: the first stage's moments of each training image.

Each host encodes some of the shards, on its own devices. Shards that are complete are kept. All hosts must share the
folder, which may be in a bucket.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax import hosts, progress, tree
from ldm_jax.data import fields
from ldm_jax.data.latents import LatentSource, LatentStore, LatentTransform, needs_pictures, open_store
from ldm_jax.data.sources import CorruptExample, Source
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.data.workers import Group, plan, prefetch
from ldm_jax.errors import ConfigError, Missing

Tree = Any
Transform = ImageTransform | fields.WithFields
Encode = Callable[[np.ndarray], jax.Array]
SAY_EVERY = 10.0  # seconds
# Options of config.data that change the encoder's input.
PREPARATION = ("channels", "image_size", "resize", "resize_to", "crop", "interpolation", "flip")


def from_cache(
    config, images: Source, transform: Transform, model: nn.Module, frozen: Tree, cores: int
) -> tuple[LatentSource, LatentTransform]:
    """Source and transform for batches with "moments" in place of "image". Writes missing shards of the cache first.

    images, transform: those of training without a cache. model: the first stage, with the variables
    frozen["first_stage"]. cores: for this process. ConfigError for latents that cannot be cached; DataError if the
    cache in the folder was made from something else; Missing where a host has no room for its copy of a bucket.
    """
    data, kind, variables = config.data, config.first_stage.kind, frozen["first_stage"]
    placing, made = getattr(transform, "transform", transform), getattr(transform, "fields", ())
    if kind == "identity":
        raise ConfigError("config.data.cache_latents: a model of the pixels themselves has no latents to keep")
    if any(field.is_encoded for field in made):
        raise ConfigError(
            "config.data.cache_latents is not for inpainting: its condition is the latent of the masked image, and the "
            "masks are random, so each step has to encode"
        )
    read = LatentTransform(placing, made)
    made_from = dict(first_stage=fingerprint(variables), kind=kind, dtype=config.dtype, images=images.identity())
    made_from |= {name: data[name] for name in PREPARATION}
    shape = moments_shape(model, variables, placing, data.channels)
    given = data.cache_latents, made_from, len(images), shape
    if jax.process_count() > 1:  # the first host alone writes what is in it: buckets take one such write a second
        hosts.decided(lambda: open_store(*given).count)
    store = open_store(*given)
    lacking = store.lacking()
    hosts.check_equal({"cached latents": lacking})
    if lacking:
        raise Missing(lacking)
    say = print if jax.process_index() == 0 else lambda *_, **__: None
    at_once = config.batch_size // config.optim.accumulate // jax.process_count()
    workers, threads = plan(data.workers, cores, images.light)
    fill(store, images, placing, encoder(model, variables), at_once, workers=workers, threads=threads, say=say)
    source = LatentSource(images, store, needs_pictures(made))
    say(f"training latents: {source.describe()}")
    return source, read


def fingerprint(variables: Tree) -> str:
    """A hash of the names, shapes, types and values of all arrays."""
    digest = hashlib.sha256()
    for name, leaf in sorted(tree.flatten(variables).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def encoder(model: nn.Module, variables: Tree) -> Encode:
    """A function images [B,H,W,C] -> moments [B,h,w,m] on this host's devices. B must be a multiple of their number."""
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    variables = jax.device_put(jax.device_get(variables), NamedSharding(mesh, PartitionSpec()))
    apply = jax.jit(lambda variables, image: model.apply(variables, image, method="moments"))
    return lambda image: apply(variables, jax.device_put(image, rows))


def moments_shape(model: nn.Module, variables: Tree, transform: ImageTransform, channels: int) -> tuple[int, ...]:
    """The shape [F,h,w,m] of the moments of one image; F = 2 if the transform mirrors images, else 1."""
    image = jax.ShapeDtypeStruct((1, *transform.hw, channels), jnp.float32)
    shape = jax.eval_shape(lambda v, x: model.apply(v, x, method="moments"), variables, image).shape
    return 1 + transform.flip, *shape[1:]


@dataclass(frozen=True)
class _Images:
    """j -> the image of example indices[j], float32 [H,W,C] not mirrored, or the CorruptExample of that image."""

    source: Source
    transform: ImageTransform
    indices: np.ndarray

    def __call__(self, j: int) -> np.ndarray | CorruptExample:
        try:
            # Such a transform draws no random numbers except for mirroring, which is off here.
            return self.transform(self.source[int(self.indices[j])], np.random.default_rng(0))["image"]
        except CorruptExample as error:
            return error


def _read(images: _Images, batch_size: int, workers: int, threads: int) -> grain.DatasetIterator:
    """Iterator of lists of at most batch_size images, made in threads or worker processes. It has close()."""
    batch = Group(images, list, batch_size, len(images.indices), threads)
    dataset = grain.MapDataset.range(-(-batch.total // batch_size)).map(batch)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    return iter(prefetch(dataset, workers))


def _moments(encode: Encode, images: list[np.ndarray], size: int, mirror: bool) -> np.ndarray:
    """Moments [n,F,h,w,m] of n <= size images. Batches are padded to `size`, so that one compiled program is enough."""
    batch = np.zeros((size, *images[0].shape), np.float32)
    batch[: len(images)] = images
    seen = [batch, batch[:, :, ::-1]] if mirror else [batch]
    parts = [encode(np.ascontiguousarray(x)) for x in seen]
    return np.stack([np.asarray(part)[: len(images)] for part in parts], axis=1)


def _examples(
    images: _Images, encode: Encode, batch_size: int, mirror: bool, workers: int, threads: int, say: Callable,
    line: progress.Line,
) -> Iterator:  # fmt: skip
    """For each image its moments [F,h,w,m], or the CorruptExample."""
    began = said = time.perf_counter()
    done, total = 0, len(images.indices)
    batches = _read(images, batch_size, workers, threads)
    for batch in batches:
        readable = [image for image in batch if not isinstance(image, CorruptExample)]
        made = iter(_moments(encode, readable, batch_size, mirror) if readable else ())
        for image in batch:
            yield image if isinstance(image, CorruptExample) else next(made)
        done, now = done + len(batch), time.perf_counter()
        line.show(done)
        if not line.live and (now - said > SAY_EVERY or done == total):
            rate, said = done / (now - began), now
            left = progress.duration((total - done) / rate)
            say(f"caching latents: {done}/{total} images  {rate:.1f} images/s  left {left}", flush=True)
    batches.close()


def fill(
    store: LatentStore,
    images: Source,
    transform: ImageTransform,
    encode: Encode,
    batch_size: int,
    *,
    workers: int,
    threads: int = 1,
    say: Callable,
) -> None:
    """Writes the missing shards of `store`. Returns when all hosts have written theirs.

    If the transform mirrors images, mirrored images are encoded as well. batch_size: number of images that this host
    encodes together; workers, threads: that decode them. ConfigError if the shards of other hosts are not in the folder
    of this one.
    """
    host, count = jax.process_index(), jax.process_count()
    missing = store.missing()
    if count > 1:
        multihost_utils.sync_global_devices("which cached latents are missing")
    mine = missing[host::count]
    if missing:
        kept = f", {store.shards - len(missing)} are there" if len(missing) < store.shards else ""
        say(f"caching latents: {len(missing)} of {store.shards} files to write into {store.where}{kept}", flush=True)
    if mine:
        indices = np.concatenate([np.asarray(store.indices(shard)) for shard in mine])
        seen = _Images(images, replace(transform, flip=False), indices)
        with progress.Line("caching latents", len(indices), unit="images", active=host == 0) as line:
            examples = _examples(seen, encode, batch_size, transform.flip, workers, threads, say, line)
            for shard in mine:
                store.write(shard, islice(examples, len(store.indices(shard))))
            next(examples, None)  # runs to the end: prints the last line and stops the readers
    if count > 1:
        multihost_utils.sync_global_devices("cached latents are written")
    left = store.missing() if missing else []
    if left:
        raise ConfigError(
            f"{store.name(left[0])} and {len(left) - 1} more were written by other hosts, but host {host} does not see "
            "them: --config.data.cache_latents must be a folder that all hosts share"
        )
    store.bring()
