"""Random access to examples: folders of images, prepared TensorFlow Datasets, drawn shapes.

A source knows neither transforms nor batches. Its examples are dicts with "image" uint8 [H,W,C] and, where
known, "label" int, "text" str, "objects" [{"box": [x0,y0,x1,y1] in 0..1, "class": int}] (and flags, layout.py),
"segmentation" uint8 [H,W], "mask" uint8 [H,W] (1 = hole), "name" str. Sources can be pickled, for worker processes.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldm_jax.data import folder, shapes
from ldm_jax.data.layout import LayoutRules

SPLITS = ("train", "validation", "all")


class CorruptExample(Exception):
    """An example that cannot be decoded: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source:
    """The interface. `class_names` is () where there are no labels."""

    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict:
        """Example i, 0 <= i < len, else IndexError. CorruptExample where it cannot be decoded."""
        raise NotImplementedError

    def annotations(self, i: int) -> dict:
        """What example i holds besides pictures and maps; a source that need not decode them for it does not."""
        return {key: value for key, value in self[i].items() if not isinstance(value, np.ndarray)}

    def describe(self) -> str:
        """One line: count, classes, sizes."""
        raise NotImplementedError


def to_channels(image: Image.Image, channels: int) -> np.ndarray:
    """Any Pillow image -> uint8 [H,W,channels]: transparency is composited on white, palettes are resolved,
    16-bit grey is divided by 257. ValueError for floating-point pixels, whose range is unknown."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range: convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(image.height, image.width, channels)


class FilteredSource(Source):
    """The examples of a source that a layout model learns from: LayoutRules says which, and which of their objects.

    Looks at the annotations of all examples once. ValueError where none is left.
    """

    def __init__(self, source: Source, rules: LayoutRules):
        self.source, self.rules, self.class_names = source, rules, source.class_names
        self._kept = [i for i in range(len(source)) if rules.keep(source.annotations(i).get("objects", [])) is not None]
        if not self._kept:
            raise ValueError(f"none of the {len(source)} examples is left by {rules}")

    def __len__(self) -> int:
        return len(self._kept)

    def _large(self, example: dict) -> dict:
        return example | {"objects": self.rules.keep(example.get("objects", []))}

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        return self._large(self.source[self._kept[i]])

    def annotations(self, i: int) -> dict:
        """Those of the source, without the small objects."""
        return self._large(self.source.annotations(self._kept[i]))

    def describe(self) -> str:
        """The source's line, and how many are kept."""
        return f"{self.source.describe()}; {len(self)} kept by their objects"


class FolderSource(Source):
    """Images under a folder, in the conventions of Hugging Face's imagefolder (folder.py has the rules).

    path: searched recursively for png, jpg, jpeg, webp, bmp, tif, tiff.
    split: "train" | "validation" | "all". Subfolders train/ and validation/ (val/, valid/, test/) are used
        where both are there; else a hash of the relative file name sends about `validation_fraction` of the
        images to validation, the same on every machine and however many images are added.
    channels: 3 (RGB) or 1 (grey). EXIF rotation is applied.
    shorter_side: None, or the side that the images will be resized to: large JPEGs are then decoded at a
        reduced size (never below it), which is faster and changes the pixels a little.
    """

    def __init__(self, path: str | Path, split: str = "train", channels: int = 3,
                 validation_fraction: float = 0.05, shorter_side: int | None = None):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, but must be one of {', '.join(SPLITS)}")
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}, but images are read with 1 or 3")
        self.path, self.split, self.channels, self.shorter_side = Path(path), split, channels, shorter_side
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
            maps = [key for key in ("segmentation", "mask") if key in entry]
            example["image"] = self._image(entry["name"], reduced=not maps)
            for key in maps:
                example[key] = self._map(key, entry[key], example["image"].shape[:2])
        # A broken file can raise nearly anything in a decoder.
        except Exception as error:
            raise CorruptExample(entry["name"], f"{type(error).__name__}: {error}") from error
        return example | self.annotations(i)

    def annotations(self, i: int) -> dict:
        """Name, label, text and objects as the metadata has them; nothing is decoded."""
        entry = self._entries[i]
        return {key: entry[key] for key in ("name", "label", "text", "objects") if key in entry}

    def _image(self, name: str, reduced: bool) -> np.ndarray:
        with Image.open(self.path / name) as image:
            if reduced and self.shorter_side is not None:
                image.draft(None, (self.shorter_side, self.shorter_side))
            return to_channels(ImageOps.exif_transpose(image), self.channels)

    def _map(self, key: str, name: str, size: tuple[int, int]) -> np.ndarray:
        """A palette image gives its indices, a grey one its values; a mask is 1 where the value is >= 128."""
        with Image.open(self.path / name) as image:
            values = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
            if key == "mask":
                values = np.asarray(image.convert("L")) >= 128
        if values.shape != size:
            raise ValueError(f"{key} {name} is {values.shape}, but its image is {size}")
        return values.astype(np.uint8)

    def describe(self) -> str:
        """One line: count, classes, texts, and the size of the first image."""
        try:
            with Image.open(self.path / self._entries[0]["name"]) as image:
                size = f"{image.width}x{image.height}"
        except OSError:
            size = "unreadable"
        classes = f"{len(self.class_names)} classes" if self.class_names else "no classes"
        return (f"{len(self)} images ({self.split} split of {self.path}), {classes}, {self._texts} with "
                f"text, the first {size}, read with {self.channels} channels")


def _prepared_at(name: str, data_dir: Path) -> Path:
    """The newest version folder of a prepared set. FileNotFoundError with the commands that prepare it."""
    name, _, version = name.partition(":")
    found = [path.parent for path in (data_dir / name).glob(f"{version or '*'}/dataset_info.json")]
    if found:
        return max(found, key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")])
    configs = sorted({path.parent.parent.name for path in (data_dir / name).glob("*/*/dataset_info.json")})
    hint = f"; it has configs, name one: {', '.join(f'{name}/{c}' for c in configs)}" if configs else ""
    raise FileNotFoundError(
        f"{name} is not prepared: no {data_dir / name}/{version or 'VERSION'}/dataset_info.json{hint}. "
        "Preparing needs TensorFlow, in an environment of its own:\n"
        "  python -m venv tfds-env\n"
        "  tfds-env/bin/pip install tensorflow-cpu tensorflow-datasets array_record importlib_resources\n"
        f"  tfds-env/bin/tfds build {name} --data_dir={data_dir} --file_format=array_record")


class TfdsSource(Source):
    """A set of TensorFlow Datasets prepared as array_record, read without TensorFlow.

    name: "mnist", "celeb_a_hq/256", with a version "mnist:3.0.1" (else the newest). split: as TFDS writes it,
    "train", "train[:90%]". data_dir: None = $TFDS_DATA_DIR or ~/tensorflow_datasets.
    Read are the features image, label, text or caption, and objects (bbox, label).
    FileNotFoundError with the commands to prepare it where it is not on disk.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | Path | None = None,
                 channels: int = 3):
        import tensorflow_datasets as tfds  # an import of seconds that only this source needs

        default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        at = _prepared_at(name, Path(data_dir or default).expanduser())
        builder = tfds.builder_from_directory(at)
        if builder.info.file_format.value != "array_record":
            raise ValueError(f"{at} is prepared as {builder.info.file_format.value}, which has no random "
                             "access; prepare it again with --file_format=array_record")
        features = dict(builder.info.features.items())
        if "image" not in features:
            raise ValueError(f"{name} has no feature 'image', only {', '.join(features)}")
        self.name, self.split, self.channels = name, split, channels
        self._data = builder.as_data_source(split)
        # A label without names (Scalar instead of ClassLabel) is read, but its classes are not known.
        self.class_names = tuple(getattr(features.get("label"), "names", ()))
        self._shape = features["image"].shape

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        name = f"{self.name}/{self.split}/{i}"
        try:
            record = self._data[i]
            pixels = np.asarray(record["image"])
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            image = to_channels(Image.fromarray(pixels), self.channels)
        # As in FolderSource: a broken record can raise nearly anything.
        except Exception as error:
            raise CorruptExample(name, f"{type(error).__name__}: {error}") from error
        example = {"name": name, "image": image}
        if "label" in record:
            example["label"] = int(record["label"])
        text = record.get("text", record.get("caption"))
        if isinstance(text, bytes | str):
            example["text"] = text.decode() if isinstance(text, bytes) else text
        if "objects" in record:
            # TFDS boxes are (y0, x0, y1, x1).
            objects = zip(record["objects"]["bbox"], record["objects"]["label"])
            example["objects"] = [{"box": [float(box[k]) for k in (1, 0, 3, 2)], "class": int(label)}
                                  for box, label in objects]
        return example

    def describe(self) -> str:
        """One line: count, classes and the declared size."""
        size = "x".join("?" if n is None else str(n) for n in self._shape)
        return f"{len(self)} images ({self.name}, {self.split}), {len(self.class_names)} classes, {size}"


class ShapesSource(Source):
    """Scenes drawn on demand (shapes.py): `count` of them, size x size pixels; needs no file.

    The validation split draws other scenes than the training split, whatever their counts.
    """

    class_names = shapes.CLASS_NAMES
    # Where validation scenes start: no training set is as long.
    _VALIDATION = 2**40

    def __init__(self, size: int = 64, count: int = 50_000, split: str = "train", seed: int = 0,
                 simple: bool = False):
        if split not in ("train", "validation"):
            raise ValueError(f"split is {split!r}, but shapes have train and validation")
        if not 1 <= count < self._VALIDATION:
            raise ValueError(f"count is {count}, but at least one scene must be drawn")
        self.size, self.count, self.split, self.seed, self.simple = size, count, split, seed, simple

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.count:
            raise IndexError(f"example {i} of {self.count}")
        index = i + (self._VALIDATION if self.split == "validation" else 0)
        return shapes.draw(self.seed, index, self.size, self.simple)

    def describe(self) -> str:
        """One line: count, classes and size."""
        kind = "simple scenes" if self.simple else "scenes"
        return (f"{self.count} drawn {kind} of shapes ({self.split}, seed {self.seed}), "
                f"{len(self.class_names)} classes, {self.size}x{self.size}")
