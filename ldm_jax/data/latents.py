"""Cached latents: the encoder's output for each image of a source, on disk. Training reads it in place of the images.

    DIR/latents.json                          what the latents were made from, and their shape
    DIR/latents-00003-of-00010.array_record   examples 3 * per_shard .. 4 * per_shard - 1, in the order of the source

An entry of an ArrayRecord file is one example. It is a byte 0 and the example's moments, float32 [F,h,w,m]; F = 2 if
the mirrored image is cached as well, else 1. Or, for an example that could not be read, it is a byte 1, the name and
the reason; training skips such an example, as it does without a cache. The first stage defines what the moments mean.

DIR may be in a bucket. Then a host writes its files on its own disk and puts them into DIR, and each machine reads from
a copy of DIR (copies.py).

Why float32: float16 changes the latents of the KL first stage of configs/emoji_first_stage.py by 0.02 % of their
standard deviation (root mean square; at most 0.07 %), a quarter of the posterior's noise, and decoded images by at most
0.33 of 255 grey levels. That is harmless there. But training with a cache should equal training without it, up to
float32 rounding, for every first stage. This is worth twice the disk space.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ldm_jax import files
from ldm_jax.data import copies
from ldm_jax.data.fields import Field, Placed
from ldm_jax.data.sources import CorruptExample, Source
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.files import at, is_local, listed

VERSION = 2  # version 1 compared only the names of images, not their contents
SHARD_BYTES, SHARD_EXAMPLES = 2**28, 4096  # the most that a file holds, and that a killed run has to make again
_MOMENTS, _CORRUPT = b"\0", b"\1"


@dataclass(frozen=True)
class LatentStore:
    """The files of a cache of `count` examples with moments of `shape` [F,h,w,m]. Can be pickled.

    bucket: the cache's folder where that is in a bucket; then `folder` is this machine's copy of it.
    """

    folder: Path
    count: int
    shape: tuple[int, int, int, int]
    per_shard: int
    bucket: Path | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def shards(self) -> int:
        return -(-self.count // self.per_shard)

    def indices(self, shard: int) -> range:
        """The indices of the examples in a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.count))

    @property
    def where(self) -> Path:
        """The folder that all hosts share."""
        return self.bucket or self.folder

    def name(self, shard: int) -> str:
        return f"latents-{shard:05d}-of-{self.shards:05d}.array_record"

    def path(self, shard: int) -> Path:
        return self.folder / self.name(shard)

    def _is_whole(self, shard: int) -> bool:
        """Whether the file on this machine is."""
        from array_record.python.array_record_module import ArrayRecordReader

        if not self.path(shard).exists():
            return False
        reader = ArrayRecordReader(str(self.path(shard)))
        if not reader.ok():  # an incomplete file; close() would raise
            return False
        whole = reader.num_records() == len(self.indices(shard))
        reader.close()
        return whole

    def missing(self) -> list[int]:
        """Shards that are not finished. In a bucket what exists is complete; ReadFailed where it does not tell."""
        if self.bucket is None:
            return [shard for shard in range(self.shards) if not self._is_whole(shard)]
        there = listed(self.bucket)
        return [shard for shard in range(self.shards) if self.name(shard) not in there]

    def lacking(self) -> str:
        """What to say where this machine has no room for its copy of a bucket; "" else."""
        if self.bucket is None:
            return ""
        examples = sum(len(self.indices(shard)) for shard in range(self.shards) if not self._is_whole(shard))
        return copies.lacking(self.bucket, self.folder, examples * 4 * int(np.prod(self.shape)))

    def bring(self) -> None:
        """Copies from the bucket what this machine lacks, or has in pieces; all shards are finished. DataError for one
        that is damaged in the bucket."""
        if self.bucket is None:
            return
        there = listed(self.bucket)
        names = {k: self.name(k) for k in range(self.shards)}
        if gone := [name for name in names.values() if name not in there]:
            raise DataError(
                f"{self.bucket / gone[0]} is not there any more, and {len(gone) - 1} others: start this run again"
            )
        anew = [name for k, name in names.items() if self.path(k).exists() and not self._is_whole(k)]
        copies.bring(self.bucket, self.folder, {name: there[name].size for name in names.values()}, anew)
        damaged = [name for k, name in names.items() if not self._is_whole(k)]
        if damaged:
            raise DataError(
                f"{self.bucket / damaged[0]} is damaged, and {len(damaged) - 1} more: remove them, and the next start "
                "makes them anew"
            )

    def write(self, shard: int, examples: Iterable[np.ndarray | CorruptExample]) -> None:
        """Writes one shard. The file gets its name when it is complete.

        ValueError for too few examples or another shape, RuntimeError if another process writes the same shard.
        """
        from array_record.python.array_record_module import ArrayRecordWriter

        path = self.path(shard)
        for left in self.folder.glob(f"{path.name}.*.tmp"):  # from a run that was killed
            left.unlink(missing_ok=True)
        temporary = files.temporary(path)
        # Compression with zstd would save 7 % of the disk space, but reading would be 4 times slower.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        written = 0
        for example in examples:
            writer.write(self._record(example))
            written += 1
        writer.close()
        if written != len(self.indices(shard)):
            raise ValueError(f"{path} was given {written} examples, but holds {len(self.indices(shard))}")
        try:
            files.settle(temporary)
            os.replace(temporary, path)
        except FileNotFoundError:
            raise DataError(f"another run is writing {self.folder}: start this one again when it is done") from None
        if self.bucket is not None:
            files.write(self.bucket / path.name, path.read_bytes())

    def _record(self, example: np.ndarray | CorruptExample) -> bytes:
        if isinstance(example, CorruptExample):
            return _CORRUPT + json.dumps([example.name, example.reason]).encode()
        if example.shape != self.shape:
            raise ValueError(f"moments of shape {example.shape} for a cache of {self.shape}")
        return _MOMENTS + np.ascontiguousarray(example, np.float32).tobytes()

    @cached_property
    def _records(self):
        """Opens files when they are first read. Threads may share it."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        # With "[0:n]" it does not open all files at once to count their records.
        return ArrayRecordDataSource([f"{self.path(s)}[0:{len(self.indices(s))}]" for s in range(self.shards)])

    def __getitem__(self, i: int) -> np.ndarray:
        """Moments float32 [F,h,w,m] of example i. CorruptExample if the image could not be read when they were made."""
        if not 0 <= i < self.count:
            raise IndexError(f"example {i} of {self.count}")
        record = self._records[i]
        if record[:1] == _CORRUPT:
            raise CorruptExample(*json.loads(record[1:]))
        return np.frombuffer(record, np.float32, offset=1).reshape(self.shape).copy()


def open_store(
    folder: str | Path, made_from: dict, count: int, shape: tuple[int, ...], shard_bytes: int = SHARD_BYTES
) -> LatentStore:
    """Opens the cache in `folder`, which may be in a bucket, or creates an empty one.

    `LatentStore.missing` lists the shards that are not written yet.
    made_from: {name: str, number or bool}, everything that the moments depend on. DataError if the cache in the folder
    was made from something else; it lists the differences.
    """
    folder = at(folder, "folder")
    path, size = folder / "latents.json", 4 * int(np.prod(shape))
    facts = {"version": VERSION, **made_from, "examples": count, "shape": list(shape)}
    if not files.exists(path):
        with files.reaching(folder, write=True):
            folder.mkdir(parents=True, exist_ok=True)
        per_shard = min(max(shard_bytes // size, 1), SHARD_EXAMPLES)
        text = json.dumps(facts | {"per_shard": per_shard}, indent=2) + "\n"
        if is_local(path):  # several runs may write it at the same time
            temporary = files.temporary(path)
            temporary.write_text(text)
            os.replace(temporary, path)
        else:
            files.write(path, text)
    other = "Give another folder with --config.data.cache_latents=DIR, or delete this one to have it made again."
    with files.opened(path) as file:
        described = file.read()
    try:
        before = json.loads(described)
        per_shard, version = before.pop("per_shard"), before["version"]
        if type(per_shard) is not int or type(version) is not int or per_shard < 1:
            raise ValueError(f"per_shard is {per_shard!r}, version is {version!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {str(error)[:100]}). {other}") from None
    if version < VERSION:
        raise DataError(
            f"the cached latents in {folder} were made by an older version, which did not record the contents of the "
            f"images. So it cannot be checked that they belong to these images. {other}"
        )
    wrong = [
        f"    {name}: {before.get(name)!r} there, {facts.get(name)!r} here"
        for name in dict.fromkeys([*facts, *before])
        if before.get(name) != facts.get(name)
    ]
    if wrong:
        raise DataError(
            f"the cached latents in {folder} were made from something else:\n" + "\n".join(wrong) + f"\n{other}"
        )
    if is_local(folder):
        return LatentStore(folder, count, tuple(shape), per_shard)
    here = copies.place_of(folder, described)
    copies.begin(folder, here)
    return LatentStore(here, count, tuple(shape), per_shard, folder)


class LatentSource(Source):
    """The examples of `images`, in the same order, with their "moments" float32 [F,h,w,m] from `store`.

    pictures: whether examples also have their image and maps. If not, no image is decoded.
    """

    def __init__(self, images: Source, store: LatentStore, pictures: bool):
        if len(images) != len(store):
            raise ValueError(f"{len(store)} cached latents for {len(images)} images")
        self.images, self.store, self.pictures, self.class_names = images, store, pictures, images.class_names
        self.light = images.light or not pictures

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        moments = self.store[i]
        example = self.images[i] if self.pictures else self.images.annotations(i)
        return example | {"moments": moments}

    def annotations(self, i: int) -> dict:
        """The annotations of the image."""
        return self.images.annotations(i)

    def describe(self) -> str:
        """The line of the images, and the folder of the latents."""
        return f"{self.images.describe()}; latents of shape {self.store.shape} in {self.store.where}"


def needs_pictures(made: tuple[Field, ...]) -> bool:
    """Whether one of the fields is made from the image or from a map of it."""
    return any(field.reads_image for field in made)


@dataclass(frozen=True)
class LatentTransform:
    """Callable (example of a LatentSource, rng) -> {"moments": float32 [h,w,m]} and the arrays of all `fields`.

    It draws the same random numbers in the same order as fields.WithFields, so that the same samples are mirrored with
    and without a cache. ConfigError for a transform with random crops.
    """

    transform: ImageTransform
    fields: tuple[Field, ...] = ()

    def __post_init__(self):
        if self.transform.crop == "random" or self.transform.resize == "square":
            where = "crop='random'" if self.transform.crop == "random" else "resize='square'"
            raise ConfigError(
                f"latents cannot be cached with random crops (config.data.{where}): each epoch uses other parts of the "
                "images. Use --config.data.crop=center and --config.data.resize=shorter, or train without "
                "--config.data.cache_latents."
            )

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if needs_pictures(self.fields):
            placing = self.transform.place(example, rng)
            image, flip = placing.image(example["image"], self.transform.interpolation), placing.flip
        else:
            placing, image, flip = None, None, self.transform.draw_flip(rng)
        out = {"moments": example["moments"][int(flip)]}
        for field in self.fields:
            out |= field(Placed(example, image, placing), rng)
        return out
