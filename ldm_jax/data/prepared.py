"""Data sets of TensorFlow Datasets, prepared as array_record: where they are on disk, and the names of their features.

TABLE has the sets whose features do not have the usual names. Another such set needs another line in it. The keys of
examples are those of sources.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ldm_jax.errors import DataError
from ldm_jax.files import at, is_file, opened, reaching


@dataclass(frozen=True)
class Names:
    """The names of a set's features. A set may lack any of them.

    text: the first of these that the set has is read: a text, or, for a name with "/", a list of texts.
    objects: a sequence with "bbox" (ymin, xmin, ymax, xmax in 0..1) and "label".
    flags: flag (layout.FLAGS) -> the name of its feature in `objects`. Its values: 1 = yes, 0 = no, -1 = unknown.
    """

    text: tuple[str, ...] = ("text", "caption")
    objects: str = "objects"
    flags: dict[str, str] = field(default_factory=dict)


_OPEN_IMAGES = {"group": "is_group_of", "occluded": "is_occluded", "depiction": "is_depiction", "inside": "is_inside"}
TABLE = {
    "coco": Names(flags={"group": "is_crowd"}),
    "coco_captions": Names(text=("captions/text",), flags={"group": "is_crowd"}),
    "open_images_v4": Names(objects="bobjects", flags=_OPEN_IMAGES),
}


def names_of(name: str) -> Names:
    """The names of the features of a set; `name` is for example "coco/2017" or "coco:1.1.0"."""
    return TABLE.get(name.partition("/")[0].partition(":")[0], Names())


def folder_of(name: str, data_dir: Path) -> Path:
    """The folder of a prepared set's newest version. FileNotFoundError with the commands that prepare the set."""
    name, _, version = name.partition(":")
    with reaching(data_dir):
        versions = [path.parent for path in (data_dir / name).glob(f"{version or '*'}/dataset_info.json")]
    if versions:
        return max(versions, key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")])
    with reaching(data_dir):
        configs = sorted({path.parent.parent.name for path in (data_dir / name).glob("*/*/dataset_info.json")})
    hint = f"; it has configs, name one: {', '.join(f'{name}/{c}' for c in configs)}" if configs else ""
    raise FileNotFoundError(
        f"{name} is not prepared: no {data_dir / name}/{version or 'VERSION'}/dataset_info.json{hint}. "
        "Preparing needs TensorFlow, in an environment of its own:\n"
        "  python -m venv tfds-env\n"
        "  tfds-env/bin/pip install tensorflow-cpu tensorflow-datasets array_record importlib_resources\n"
        f"  tfds-env/bin/tfds build {name} --data_dir={data_dir} --file_format=array_record"
    )


def kept_classes(path: str | Path, names: tuple[str, ...]) -> dict[int, int]:
    """Reads a file of class names, one a line. Returns {number in the set: number of the line}, in the lines' order.

    names: the classes of the set. DataError for an unknown or repeated name. FileNotFoundError if there is no file; it
    says how to make one.
    """
    path = at(path, "classes")
    if not is_file(path):
        raise FileNotFoundError(
            f"{path} does not exist: the names of the classes to keep, one a line. The most frequent ones:\n"
            f"  python scripts/count_classes.py --name=NAME --data_dir=DIR --most=352 --out={path}"
        )
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text in UTF-8 ({error}): save it as one, with a class name a line") from None
    wanted = [line.strip() for line in text.splitlines() if line.strip()]
    unknown = [name for name in wanted if name not in names]
    if unknown or len(set(wanted)) != len(wanted) or not wanted:
        wrong = f"the unknown class {unknown[0]!r}" if unknown else "a class twice" if wanted else "no class"
        raise DataError(f"{path} names {wrong}; the set has {len(names)}: {', '.join(names[:5])}, ...")
    return {names.index(name): number for number, name in enumerate(wanted)}


def annotations(record: dict, names: Names, classes: dict[int, int] | None) -> dict:
    """ "label", "text" (a str, or a tuple of them) and "objects" of a record, if it has them.

    classes: {number in the set: number in the example}; objects of other classes are dropped. None: all are kept.
    """
    out = {"label": int(record["label"])} if "label" in record else {}
    for path in names.text:
        texts = record
        for key in path.split("/"):
            texts = texts.get(key) if isinstance(texts, dict) else None
        if texts is not None and len(texts):
            out["text"] = _str(texts) if isinstance(texts, bytes | str) else tuple(_str(text) for text in texts)
            break
    if "bbox" in record.get(names.objects, ()):
        out["objects"] = _objects(record[names.objects], names.flags, classes)
    return out


def _str(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def _objects(columns: dict, flags: dict[str, str], classes: dict[int, int] | None) -> list[dict]:
    """The columns of a sequence -> [{"box": [x0,y0,x1,y1], "class": int, flag: True}]."""
    objects = []
    for k, (box, label) in enumerate(zip(columns["bbox"], columns["label"])):
        number = int(label) if classes is None else classes.get(int(label))
        if number is None:
            continue
        y0, x0, y1, x1 = (float(x) for x in np.clip(box, 0, 1))
        is_set = {flag: True for flag, name in flags.items() if name in columns and int(columns[name][k]) == 1}
        objects.append({"box": [x0, y0, x1, y1], "class": number, **is_set})
    return objects
