"""Sets of TensorFlow Datasets prepared as array_record: where they lie, and what they call the parts of an example.

TABLE holds the names of the sets that have others than the usual ones; a further set is a further line. An example's
parts are those of sources.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Names:
    """What the features of a set are called; a set need not have them.

    text: first of these that is there: a text, or with "/" a list of texts, of which each pass over the data takes one.
    objects: a sequence with "bbox" (ymin, xmin, ymax, xmax in 0..1) and "label".
    flags: flag (layout.FLAGS) -> its feature in `objects`; set where it is 1 (0 = no, -1 = unknown).
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
    """Those of a set like "coco/2017" or "coco:1.1.0"."""
    return TABLE.get(name.partition("/")[0].partition(":")[0], Names())


def folder_of(name: str, data_dir: Path) -> Path:
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


def kept_classes(path: str | Path, names: tuple[str, ...]) -> dict[int, int]:
    """A file of class names, one a line -> {number in the set: number of the line}, in the order of the lines.

    ValueError for a name that the set has not, or twice. FileNotFoundError says how to make the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} does not exist: the names of the classes to keep, one a line. The most frequent ones:\n"
            f"  python scripts/count_classes.py --name=NAME --data_dir=DIR --most=352 --out={path}")
    wanted = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    unknown = [name for name in wanted if name not in names]
    if unknown or len(set(wanted)) != len(wanted) or not wanted:
        wrong = f"the unknown class {unknown[0]!r}" if unknown else "a class twice" if wanted else "no class"
        raise ValueError(f"{path} names {wrong}; the set has {len(names)}: {', '.join(names[:5])}, ...")
    return {names.index(name): number for number, name in enumerate(wanted)}


def annotations(record: dict, names: Names, classes: dict[int, int] | None) -> dict:
    """"label", "text" (a str, or a tuple of them) and "objects" of a record, where it has them.

    classes: number in the set -> number here; objects of other classes are left out. None: all, as they are.
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
    """A sequence's columns -> [{"box": [x0,y0,x1,y1], "class": int, flags that are set: True}]."""
    found = []
    for k, (box, label) in enumerate(zip(columns["bbox"], columns["label"])):
        number = int(label) if classes is None else classes.get(int(label))
        if number is None:
            continue
        y0, x0, y1, x1 = (float(x) for x in np.clip(box, 0, 1))
        told = {flag: True for flag, name in flags.items() if name in columns and int(columns[name][k]) == 1}
        found.append({"box": [x0, y0, x1, y1], "class": number, **told})
    return found
