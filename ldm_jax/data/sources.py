"""Sources give the examples of a data set by number: folders of images, prepared TensorFlow Datasets, drawn shapes.

An example is a dict with "image" uint8 [H,W,C] and "name" str. If they are known, it also has
    "label"         int
    "text"          str, or a tuple of captions
    "objects"       [{"box": [x0,y0,x1,y1] in 0..1, "class": int}], and flags (layout.py)
    "segmentation"  uint8 [H,W], the class of each pixel
    "mask"          uint8 [H,W], 1 = hole
    "vectors"       float32 [n,dim]
Sources do not resize images and do not make batches. They can be pickled, for worker processes.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldm_jax.data import copies, folder, prepared, shapes
from ldm_jax.data.folder import listed
from ldm_jax.data.layout import LayoutRules
from ldm_jax.data.metadata import read_vectors
from ldm_jax.errors import ConfigError, DataError, Missing, ReadFailed
from ldm_jax.files import at, is_local
from ldm_jax.images import open_image, to_channels

SPLITS = ("train", "validation", "all")
ENDS = 2**16  # bytes at the beginning and at the end of a file that `fingerprint` reads


class CorruptExample(Exception):
    """An example that cannot be decoded: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source:
    """The interface of all sources. `class_names` is () if there are no labels. `light`: examples are made in so little
    time that threads and processes do not pay."""

    class_names: tuple[str, ...] = ()
    light: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict:
        """Example i. IndexError unless 0 <= i < len; CorruptExample if it cannot be decoded."""
        raise NotImplementedError

    def annotations(self, i: int) -> dict:
        """Example i without its arrays. Most sources read this without decoding the image."""
        return {key: value for key, value in self[i].items() if not isinstance(value, np.ndarray)}

    def describe(self) -> str:
        """One line for the user: number of examples, classes, sizes."""
        raise NotImplementedError

    def alike(self) -> str:
        """`describe` without what may differ between the hosts of a run, which is the folder."""
        return self.describe()

    def identity(self) -> str:
        """A string that is equal for sources with the same images in the same order, whatever folder they are in, all
        on disks or all in buckets."""
        return self.describe()

    def conditions_identity(self, numbers: Sequence[int]) -> str:
        """What `identity` does not say of these examples: their labels, texts, objects, vectors and maps."""
        return ""


def fingerprint(folder: Path, names: Sequence[str]) -> str:
    """A hash of the files: their names, their sizes, and the first and last 64 KiB of each.

    Files of up to 128 KiB are read completely. In a larger file, a change in the middle that keeps the size and both
    ends is not noticed. Saving an edited image again changes the size or the ends. Of a bucket no file is read: its
    listing has sizes and checksums, and so the hash is another one than that of the same files on a disk.
    """
    digest = hashlib.sha256()
    if not is_local(folder):
        there = listed(folder) if names else {}
        for name in names:
            seen = there.get(name)
            digest.update(f"{name}\n{seen and tuple(seen)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]
    if len(names) > 100_000:
        print(f"comparing the contents of {len(names)} files: some minutes for every million", flush=True)
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(names), 4096):
            some = names[start : start + 4096]
            for name, seen in zip(some, pool.map(_ends, (folder / name for name in some))):
                digest.update(f"{name}\n".encode(errors="surrogateescape") + seen)
    return digest.hexdigest()[:16]


def _ends(path: Path) -> bytes:
    """A hash of the size, the beginning and the end; b"" if the file cannot be read."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size}\n".encode() + file.read(ENDS))
            file.seek(max(size - ENDS, min(size, ENDS)))
            digest.update(file.read(ENDS))
    except OSError:
        return b""
    return digest.digest()


class FilteredSource(Source):
    """The examples of `source` that `rules` keep, without the objects that `rules` drop. For layout models.

    The annotations of all examples are read once. `kept`: indices of the examples that stay; DataError if none does.
    """

    def __init__(self, source: Source, rules: LayoutRules):
        self.source, self.rules, self.class_names, self.light = source, rules, source.class_names, source.light
        if len(source) > 100_000:
            print(f"reading the objects of {len(source)} examples: about a minute for every 200,000", flush=True)
        self.kept = [i for i in range(len(source)) if rules.keep(source.annotations(i).get("objects", [])) is not None]
        if not self.kept:
            raise DataError(f"none of the {len(source)} examples is left by {rules}")

    def __len__(self) -> int:
        return len(self.kept)

    def _with_large_objects(self, example: dict) -> dict:
        return example | {"objects": self.rules.keep(example.get("objects", []))}

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self._with_large_objects(self.source[self.kept[i]])

    def annotations(self, i: int) -> dict:
        """Those of the source, without the dropped objects."""
        return self._with_large_objects(self.source.annotations(self.kept[i]))

    def describe(self) -> str:
        """The source's line, and how many examples are kept."""
        return f"{self.source.describe()}; {len(self)} kept by their objects"

    def alike(self) -> str:
        """The same without the folder."""
        return f"{self.source.alike()}; {len(self)} kept by their objects"

    def identity(self) -> str:
        """The source's identity, and which examples are kept."""
        kept = hashlib.sha256(np.asarray(self.kept, np.int64)).hexdigest()[:16]
        return f"{self.source.identity()}, of these {len(self)}: {kept}"

    def conditions_identity(self, numbers: Sequence[int]) -> str:
        """That of the source, and the rules."""
        return f"{self.source.conditions_identity([self.kept[i] for i in numbers])} {self.rules}"


class FolderSource(Source):
    """Images in a folder and its subfolders, in the conventions of Hugging Face's imagefolder (folder.py).

    path: the folder, which may be in a bucket. Files with the extensions png, jpg, jpeg, webp, bmp, tif and tiff are
        images.
    split: "train" | "validation" | "all". If there are subfolders train/ and validation/ (or val/, valid/, test/), they
        are the splits. Otherwise a hash of the relative file name puts about `validation_fraction` of the images into
        validation: the same images on every machine, also when more images are added.
    channels: 3 (RGB) or 1 (grey). EXIF rotation is applied.
    """

    def __init__(self, path: str | Path, split: str = "train", channels: int = 3, validation_fraction: float = 0.05):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, but must be one of {', '.join(SPLITS)}")
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}, but images are read with 1 or 3")
        self.path, self.split, self.channels = at(path, "path"), split, channels
        listing = folder.scan(self.path)
        chosen = folder.choose_split(listing, split, validation_fraction)
        self.class_names = listing.class_names
        self._entries = [listing.entries[i] for i in chosen]
        self._texts = sum("text" in entry for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> dict:
        entry = self._entries[i]
        example = {"name": entry["name"]}
        try:
            example["image"] = self._image(entry["name"])
            for key in ("segmentation", "mask"):
                if key in entry:
                    example[key] = self._map(key, entry[key], example["image"].shape[:2])
            vectors = entry.get("vectors")
            if vectors is not None:
                example["vectors"] = read_vectors(self.path / vectors) if isinstance(vectors, str) else vectors
        except ReadFailed:
            raise
        # Decoders raise nearly any exception for a broken file.
        except Exception as error:
            raise CorruptExample(entry["name"], f"{type(error).__name__}: {error}") from error
        return example | self.annotations(i)

    def annotations(self, i: int) -> dict:
        """Name, label, text and objects, from the metadata. No file is opened."""
        entry = self._entries[i]
        return {key: entry[key] for key in ("name", "label", "text", "objects") if key in entry}

    def _image(self, name: str) -> np.ndarray:
        with open_image(self.path / name) as image:
            return to_channels(ImageOps.exif_transpose(image), self.channels)

    def _map(self, key: str, name: str, size: tuple[int, int]) -> np.ndarray:
        """The indices of a palette image or the values of a grey one. For "mask": 1 where the grey value is >= 128."""
        with open_image(self.path / name) as image:
            values = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
            if key == "mask":
                values = np.asarray(image.convert("L")) >= 128
        if values.shape != size:
            raise ValueError(f"{key} {name} is {values.shape}, but its image is {size}")
        return values.astype(np.uint8)

    def describe(self) -> str:
        """One line: number of images, folder, classes, texts, and the size of the first image."""
        return self._described(f"{self.split} split of {self.path}")

    def alike(self) -> str:
        """The same without the folder."""
        return self._described(f"{self.split} split")

    def _described(self, what: str) -> str:
        try:
            with open_image(self.path / self._entries[0]["name"]) as image:
                size = f"{image.width}x{image.height}"
        except ReadFailed:
            raise
        except Exception:  # as in __getitem__
            size = "unreadable"
        classes = f"{len(self.class_names)} classes" if self.class_names else "no classes"
        return (
            f"{len(self)} images ({what}), {classes}, {self._texts} with "
            f"text, the first {size}, read with {self.channels} channels"
        )

    def identity(self) -> str:
        """Names and contents of the images (`fingerprint`)."""
        names = [entry["name"] for entry in self._entries]
        return f"{len(self)} images with the fingerprint {fingerprint(self.path, names)}"

    def conditions_identity(self, numbers: Sequence[int]) -> str:
        """A hash of the metadata of these examples, and one of the contents of their maps and files of vectors."""
        entries = [self._entries[i] for i in numbers]
        said = json.dumps(entries, default=lambda array: array.tolist())
        files = [entry[key] for entry in entries for key in ("segmentation", "mask", "vectors") if key in entry]
        contents = fingerprint(self.path, [file for file in files if isinstance(file, str)])
        return f"{hashlib.sha256(said.encode()).hexdigest()[:16]} {contents}"


class TfdsSource(Source):
    """A data set of TensorFlow Datasets that was prepared as array_record. It is read without TensorFlow.

    name: for example "mnist", "coco/2017", or with a version "mnist:3.0.1" (default: the newest version on disk).
    split: in the notation of TFDS, for example "train", "train[:90%]", "train+restval".
    data_dir: None means $TFDS_DATA_DIR or ~/tensorflow_datasets. Of a set in a bucket this machine keeps a copy
        (copies.py); Missing where it has no room for it.
    classes: None, or a file with the names of the classes of objects to keep, one a line. The number of a class is then
        the number of its line.
    object_names: names of the classes of objects, by number; () if the set has no objects.
    Image, label, text and objects are read; prepared.py says what the set calls them. FileNotFoundError if the set is
    not on disk, with the commands that prepare it.
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        data_dir: str | Path | None = None,
        channels: int = 3,
        classes: str | Path | None = None,
    ):
        try:
            import tensorflow_datasets as tfds  # an import of seconds that only this source needs
        except ImportError as error:
            raise Missing(f"{name} is read by tensorflow_datasets ({error}): pip install 'ldm_jax[data]'") from error

        default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        place = prepared.folder_of(name, at(data_dir or default, "data_dir").expanduser())
        place = copies.of_folder(place, "dataset_info.json")
        builder = tfds.builder_from_directory(place)
        if builder.info.file_format.value != "array_record":
            raise DataError(
                f"{place} is prepared as {builder.info.file_format.value}, which has no random "
                "access; prepare it again with --file_format=array_record"
            )
        features = dict(builder.info.features.items())
        if "image" not in features:
            raise DataError(f"{name} has no feature 'image', only {', '.join(features)}")
        self.name, self.split, self.channels, self._names = name, split, channels, prepared.names_of(name)
        self._folder = place
        self._data = builder.as_data_source(split)
        pictures = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        self._without_pixels = builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in pictures}
        )
        # A label without names (Scalar instead of ClassLabel) is read, but its classes are not known.
        self.class_names = tuple(getattr(features.get("label"), "names", None) or ())
        self._classes, self.object_names = None, ()
        if self._names.objects in features:
            self.object_names = tuple(features[self._names.objects]["label"].names)
        if classes:
            self._classes = prepared.kept_classes(classes, self.object_names)
            self.object_names = tuple(self.object_names[k] for k in self._classes)
        self._shape = features["image"].shape

    def __len__(self) -> int:
        return len(self._data)

    def _record(self, i: int, pixels: bool) -> tuple[str, dict]:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        name = f"{self.name}/{self.split}/{i}"
        try:
            return name, (self._data if pixels else self._without_pixels)[i]
        # As in FolderSource: nearly any exception can come from a broken record.
        except Exception as error:
            raise CorruptExample(name, f"{type(error).__name__}: {error}") from error

    def __getitem__(self, i: int) -> dict:
        name, record = self._record(i, pixels=True)
        pixels = np.asarray(record["image"])
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        try:
            image = to_channels(Image.fromarray(pixels), self.channels)
        except Exception as error:
            raise CorruptExample(name, f"{type(error).__name__}: {error}") from error
        return {"name": name, "image": image, **prepared.annotations(record, self._names, self._classes)}

    def annotations(self, i: int) -> dict:
        """Name, label, text and objects. The image is read with them, but not decoded."""
        name, record = self._record(i, pixels=False)
        return {"name": name, **prepared.annotations(record, self._names, self._classes)}

    def describe(self) -> str:
        """One line: number of images, classes, and the declared size."""
        size = "x".join("?" if n is None else str(n) for n in self._shape)
        return f"{len(self)} images ({self.name}, {self.split}), {len(self.class_names)} classes, {size}"

    def identity(self) -> str:
        """The description, and the contents of the files of the set (`fingerprint`)."""
        names = sorted(path.name for path in self._folder.glob("*.array_record*"))
        return f"{self.describe()}, files with the fingerprint {fingerprint(self._folder, names)}"

    def conditions_identity(self, numbers: Sequence[int]) -> str:
        """The kept classes of objects; `identity` says the rest."""
        return str(self._classes)


class ShapesSource(Source):
    """`count` scenes of size x size pixels, drawn when they are read (shapes.py). No files are needed.

    Training and validation have different scenes, for any `count`.
    """

    class_names, light = shapes.CLASS_NAMES, True
    # The number of the first validation scene. No training set has as many scenes.
    _VALIDATION = 2**40

    def __init__(self, size: int = 64, count: int = 50_000, split: str = "train", seed: int = 0, simple: bool = False):
        if split not in ("train", "validation"):
            raise ValueError(f"split is {split!r}, but shapes have train and validation")
        if not 1 <= count < self._VALIDATION:
            raise ConfigError(f"count is {count}, but at least one scene must be drawn")
        self.size, self.count, self.split, self.seed, self.simple = size, count, split, seed, simple

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.count:
            raise IndexError(f"example {i} of {self.count}")
        index = i + (self._VALIDATION if self.split == "validation" else 0)
        return shapes.draw(self.seed, index, self.size, self.simple)

    def describe(self) -> str:
        """One line: number of scenes, classes, and size."""
        kind = "simple scenes" if self.simple else "scenes"
        return (
            f"{self.count} drawn {kind} of shapes ({self.split}, seed {self.seed}), "
            f"{len(self.class_names)} classes, {self.size}x{self.size}"
        )
