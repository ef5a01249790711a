import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from ldm_jax import recipes
from ldm_jax.conditions.text import Tokens
from ldm_jax.data import prepared
from ldm_jax.data.fields import Placed
from ldm_jax.data.layout import LayoutRules
from ldm_jax.data.sources import CorruptExample, FilteredSource, FolderSource, ShapesSource, TfdsSource
from ldm_jax.data.tokenizers import captions
from ldm_jax.errors import DataError
from ldm_jax.training import setup
from tests.data_tools import batch_at


def save(path, mode="RGB", size=(6, 4), value=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **options)


def write_metadata(folder, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def read_one(path, channels=3):
    return FolderSource(path, "all", channels)[0]["image"]


def test_classes_are_the_sorted_subfolders(tmp_path):
    for name in ("cat/b.JPG", "cat/deep/a.webp", "dog/c.png", "dog/d.bmp", "ant/e.tiff"):
        save(tmp_path / name)
    source = FolderSource(tmp_path, "all")
    assert source.class_names == ("ant", "cat", "dog") and len(source) == 5
    assert [(e["name"], e["label"]) for e in source] == [
        ("ant/e.tiff", 0),
        ("cat/b.JPG", 1),
        ("cat/deep/a.webp", 1),
        ("dog/c.png", 2),
        ("dog/d.bmp", 2),
    ]
    assert "5 images" in source.describe() and "3 classes" in source.describe() and "6x4" in source.describe()
    assert pickle.loads(pickle.dumps(source))[3]["label"] == 2


def test_folders_of_two_hosts_are_alike(tmp_path):
    """What is compared between hosts does not name the folder."""
    for name in ("one", "two"):
        save(tmp_path / name / "a.png")
    one, two = (FolderSource(tmp_path / name, "all") for name in ("one", "two"))
    assert one.alike() == two.alike() and "1 images (all split), no classes" in one.alike()
    assert str(tmp_path / "one") in one.describe()
    rules = LayoutRules(min_objects=0)
    assert FilteredSource(one, rules).alike() == FilteredSource(two, rules).alike()


def test_no_labels_where_there_is_one_folder(tmp_path):
    save(tmp_path / "images/a.png")
    save(tmp_path / "images/b.png")
    source = FolderSource(tmp_path, "all")
    assert source.class_names == () and "label" not in source[0]


def test_split_is_a_hash_of_the_name(tmp_path):
    for k in range(200):
        save(tmp_path / f"{k}.png", size=(1, 1))
    train, validation = (
        {e["name"] for e in FolderSource(tmp_path, s, validation_fraction=0.2)} for s in ("train", "validation")
    )
    assert not train & validation and len(train | validation) == 200
    assert 20 <= len(validation) <= 60
    save(tmp_path / "another.png", size=(1, 1))
    later = {e["name"] for e in FolderSource(tmp_path, "validation", validation_fraction=0.2)}
    assert validation <= later <= validation | {"another.png"}


def test_train_and_validation_folders(tmp_path):
    for name in ("train/x/1.png", "train/y/2.png", "val/y/3.png"):
        save(tmp_path / name)
    train, validation = FolderSource(tmp_path), FolderSource(tmp_path, "validation")
    assert [e["name"] for e in train] == ["train/x/1.png", "train/y/2.png"]
    assert [(e["name"], e["label"]) for e in validation] == [("val/y/3.png", 1)]
    assert train.class_names == validation.class_names == ("x", "y")


def test_pixel_formats(tmp_path):
    save(tmp_path / "rgba/a.png", "RGBA", value=(200, 0, 0, 0))
    assert (read_one(tmp_path / "rgba") == 255).all()
    save(tmp_path / "la/a.png", "LA", value=(0, 255))
    assert (read_one(tmp_path / "la") == 0).all()
    palette = Image.new("P", (5, 5), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    (tmp_path / "p").mkdir()
    palette.save(tmp_path / "p/a.png")
    assert (read_one(tmp_path / "p") == [10, 20, 30]).all()
    (tmp_path / "pt").mkdir()
    palette.save(tmp_path / "pt/a.png", transparency=1)
    assert (read_one(tmp_path / "pt") == 255).all()
    (tmp_path / "grey16").mkdir()
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "grey16/a.png")
    assert read_one(tmp_path / "grey16", 1)[0, :, 0].tolist() == [0, 100, 255]
    assert read_one(tmp_path / "grey16").shape == (1, 3, 3)
    save(tmp_path / "bit/a.png", "1", value=1)
    assert (read_one(tmp_path / "bit", 1) == 255).all()
    save(tmp_path / "cmyk/a.jpg", "CMYK")
    assert (read_one(tmp_path / "cmyk") == 255).all()


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", size=(8, 4), exif=exif)
    assert read_one(tmp_path).shape == (8, 4, 3)


def test_metadata(tmp_path):
    for name in ("images/a.png", "images/b.png", "maps/a.png", "maps/m.png", "unnamed.png"):
        save(tmp_path / name, "L" if "maps" in name else "RGB", value=200 if "maps" in name else 0)
    objects = [{"box": [0, 0.1, 0.5, 1], "class": 4}]
    write_metadata(
        tmp_path,
        {"file_name": "images/b.png", "text": "b it is", "label": "zebra"},
        "",
        {
            "file_name": "images/a.png",
            "label": "ape",
            "objects": objects,
            "segmentation": "maps/a.png",
            "mask": "maps/m.png",
        },
    )
    a, b = FolderSource(tmp_path, "all")
    assert (a["label"], b["label"], b["text"]) == (0, 1, "b it is")
    assert a["objects"] == objects and (a["segmentation"] == 200).all() and (a["mask"] == 1).all()
    assert FolderSource(tmp_path, "all").class_names == ("ape", "zebra")


def test_metadata_with_numbers_as_labels(tmp_path):
    save(tmp_path / "a.png")
    write_metadata(tmp_path, {"file_name": "a.png", "label": 2})
    source = FolderSource(tmp_path, "all")
    assert source[0]["label"] == 2 and source.class_names == ("0", "1", "2")


def test_vectors_of_the_metadata(tmp_path):
    """One vector, a list of them, or the name of a .npy file with either."""
    for name in "abcd":
        save(tmp_path / f"{name}.png")
    array = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16)
    (tmp_path / "clip").mkdir()
    np.save(tmp_path / "clip/c.npy", array)
    np.save(tmp_path / "clip/d.npy", array[0])
    write_metadata(
        tmp_path,
        {"file_name": "a.png", "vectors": [1, 2.5, -3]},
        {"file_name": "b.png", "vectors": [[1, 2, 3], [4, 5, 6]]},
        {"file_name": "c.png", "vectors": "clip/c.npy"},
        {"file_name": "d.png", "vectors": "clip/d.npy"},
    )
    source = pickle.loads(pickle.dumps(FolderSource(tmp_path, "all")))
    expected = [[[1, 2.5, -3]], [[1, 2, 3], [4, 5, 6]], array, array[:1]]
    for example, vectors in zip(source, expected):
        assert example["vectors"].dtype == np.float32 and example["vectors"].ndim == 2
        assert np.array_equal(example["vectors"], np.asarray(vectors, np.float32))
    np.save(tmp_path / "clip/c.npy", array[:0])
    (tmp_path / "clip/d.npy").unlink()
    for i in (2, 3):
        with pytest.raises(CorruptExample, match=rf"{'abcd'[i]}\.png"):
            source[i]


@pytest.mark.parametrize(
    "vectors, message",
    [
        ([], "must be"),
        ([[]], "must be"),
        ("gone.npy", r"names gone\.npy, but .* does not exist"),
        (["x"], "must be"),
        ([[1, 2], [3]], "must be"),
        ([[[1, 2, 3]]], "must be"),
        ([1, None, 3], "must be"),
        (7, "must be"),
        ([1, float("nan"), 3], "must be"),
        ({"a": 1}, "must be"),
        ("a.png", "must be"),
        ("empty.npy", "must be"),
        ("words.npy", "must be"),
        ("cut.npy", "must be"),
        ([1, 2], "vectors of 2 numbers, but those before have 3"),
        ("wide.npy", "vectors of 4 numbers, but those before have 3"),
    ],
)
def test_wrong_vectors_name_the_file_and_the_row(tmp_path, vectors, message):
    for name in "ab":
        save(tmp_path / f"{name}.png")
    for name, array in (
        ("wide", np.ones(4)),
        ("empty", np.ones((0, 3))),
        ("words", np.array(["x"])),
        ("cut", np.ones((9, 3))),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:150])
    write_metadata(tmp_path, {"file_name": "a.png", "vectors": [1, 2, 3]}, {"file_name": "b.png", "vectors": vectors})
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 2.*{message}"):
        FolderSource(tmp_path, "all")


def test_the_retrieval_recipe_reads_a_folder(tmp_path):
    """configs/rdm_768_ldm16.py on a folder with vectors: its batches have what the conditioner reads."""
    config = recipes.load("rdm_768_ldm16:tiny")
    number, dim = config.conditioner.number, config.conditioner.dim
    rows = []
    for k in range(8):
        save(tmp_path / f"{k}.png", size=(80, 64))
        rows.append({"file_name": f"{k}.png", "vectors": [float(k)] * dim})
    write_metadata(tmp_path, *rows)
    config.data.update(source="folder", path=str(tmp_path), validation_fraction=0.0)
    batch = batch_at(setup.source(config, True), setup.transform(config, True), 8, 0, seed=0)
    assert batch["vectors"].shape == (8, number, dim) and batch["vectors"].dtype == np.float32
    assert sorted(batch["vectors"][:, 0, 0]) == list(range(8))


def box(*corners, **more):
    return {"file_name": "a.png", "objects": [{"box": corners, "class": 1} | more]}


def pixels(*corners, categories=(3,)):
    """Hugging Face's convention: corner, width and height in pixels; a.png has 6 x 4."""
    return {"file_name": "a.png", "objects": {"bbox": [corners], "categories": categories}}


@pytest.mark.parametrize(
    "records, message",
    [
        ([{"file_name": "a.png"}, "{oops"], r"metadata\.jsonl, line 2: not JSON"),
        ([{"file_name": "a.png"}, '["a.png"]'], "line 2: a JSON object"),
        ([{"text": "a.png"}], "line 1: a JSON object"),
        ([{"file_name": 7}], 'line 1: "file_name" must be the name of a file, not 7'),
        ([{"file_name": "gone.png"}], r"line 1: .file_name. names gone\.png, but .* does not exist"),
        ([{"file_name": "a.png", "mask": "gone.png"}], r"names gone\.png"),
        ([{"file_name": "a.png", "mask": 0}], '"mask" must be the name of a file, not 0'),
        ([{"file_name": "a.png", "segmentation": ["b.png"]}], '"segmentation" must be the name of a file'),
        ([{"file_name": "a.png", "text": 7}], '"text" must be a string'),
        ([{"file_name": "a.png", "text": []}], '"text" must be a string'),
        ([{"file_name": "a.png", "text": ["x", 7]}], '"text" must be a string'),
        ([{"file_name": "a.png", "label": 0.5}], '"label" must be'),
        ([{"file_name": "a.png", "label": True}], '"label" must be'),
        ([{"file_name": "a.png", "label": -1}], '"label" must be'),
        ([{"file_name": "a.png", "label": ["x"]}], '"label" must be'),
        ([box(0, 0, 9, 1)], "line 1: an object must be"),
        ([box(0, 0, "1", 1)], "line 1: an object must be"),
        ([box(0, 0, 1)], "line 1: an object must be"),
        ([box(0, 0, 1, 1) | {"objects": {"box": [0, 0, 1, 1], "class": 1}}], 'line 1: "objects" must be'),
        ([box(0, 0, 1, 1) | {"objects": "box"}], 'line 1: "objects" must be'),
        ([box(0, 0, 1, 1) | {"objects": [[0, 0, 1, 1]]}], "line 1: an object must be"),
        ([box(0, 0, 1, 1, **{"class": "cat"})], "line 1: an object must be"),
        ([box(0, 0, 1, 1, **{"class": -1})], "line 1: an object must be"),
        ([pixels(0, 0, 2)], "line 1: a box must be"),
        ([pixels(0, 0, 0, 2)], "line 1: a box must be"),
        ([pixels(6, 0, 2, 2)], "line 1: a box must be"),
        ([pixels(0, 0, 2, "2")], "line 1: a box must be"),
        ([pixels(0, 0, 2, 2, categories=("cat",))], "line 1: a box must be"),
        ([pixels(0, 0, 2, 2, categories=(1, 2))], 'line 1: "objects" must be'),
        ([pixels(0, 0, 2, 2, categories=4)], 'line 1: "objects" must be'),
        ([{"file_name": "a.png", "label": 1}, {"file_name": "b.png"}], r"1 of 2 records .* no label"),
        ([{"file_name": "a.png", "label": 1}, {"file_name": "b.png", "label": "x"}], "all be strings or all"),
        ([], "names no image"),
    ],
)
def test_metadata_errors(tmp_path, records, message):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    write_metadata(tmp_path, *records)
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path, "all")


def test_metadata_that_is_not_text(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}')
    with pytest.raises(DataError, match=r"metadata\.jsonl is not UTF-8"):
        FolderSource(tmp_path, "all")


def test_a_text_may_hold_any_letter(tmp_path):
    """Some letters separate lines in Python, but not in JSON Lines; of several texts any will do."""
    save(tmp_path / "a.png")
    text = "one\u2028two\x85three"
    line = json.dumps({"file_name": "a.png", "text": [text, "other"]}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"{line}\r\n\n", encoding="utf-8", newline="")
    assert FolderSource(tmp_path, "all")[0]["text"] == (text, "other")


def test_objects_in_pixels(tmp_path):
    """Hugging Face's convention. Boxes are those of the upright image, cut to it; an unreadable image has none."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", size=(4, 8), exif=exif)  # upright 8 x 4
    save(tmp_path / "b.png", size=(10, 20))
    (tmp_path / "c.png").write_bytes(b"broken")
    objects = {"bbox": [[2, 1, 4, 2], [-1, 0.5, 3, 9]], "categories": [3, 0]}
    write_metadata(
        tmp_path,
        *({"file_name": name, "objects": objects} for name in ("a.jpg", "b.png", "c.png")),
        {"file_name": "b.png", "objects": {"bbox": [], "categories": []}},
    )
    source = FolderSource(tmp_path, "all")
    a, b, empty, c = (source.annotations(i)["objects"] for i in range(4))
    assert a == [{"box": [0.25, 0.25, 0.75, 0.75], "class": 3}, {"box": [0.0, 0.125, 0.25, 1.0], "class": 0}]
    assert b == [{"box": [0.2, 0.05, 0.6, 0.15], "class": 3}, {"box": [0.0, 0.025, 0.2, 0.475], "class": 0}]
    assert c == empty == []


@pytest.mark.parametrize("key", ["file_name", "segmentation", "mask", "vectors"])
@pytest.mark.parametrize("name", ["../out.png", "sub/../../out.png", "ABSOLUTE", "link.png", "linked/out.png"])
def test_metadata_names_nothing_outside_its_folder(tmp_path, key, name):
    folder = tmp_path / "set"
    for path in (folder / "a.png", folder / "sub/b.png", tmp_path / "out.png", tmp_path / "other/out.png"):
        save(path)
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "linked").symlink_to(tmp_path / "other")
    name = str(tmp_path / "out.png") if name == "ABSOLUTE" else name
    write_metadata(folder, {"file_name": "sub/b.png"}, {"file_name": "a.png", key: name})
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 2: \"{key}\" names .*, which leaves .*set"):
        FolderSource(folder, "all")


def test_links_that_stay_in_the_folder(tmp_path):
    """A folder that is itself a link, and links below it that stay there."""
    save(tmp_path / "real/images/a.png")
    (tmp_path / "real/b.png").symlink_to(tmp_path / "real/images/a.png")
    (tmp_path / "set").symlink_to(tmp_path / "real")
    write_metadata(tmp_path / "set", {"file_name": "b.png"}, {"file_name": "images/a.png"})
    assert [e["name"] for e in FolderSource(tmp_path / "set", "all")] == ["b.png", "images/a.png"]


def test_a_folder_that_holds_itself(tmp_path):
    """Linked folders are followed, but none twice, and under its own name where it has one here."""
    save(tmp_path / "set/x/1.png")
    save(tmp_path / "other/y/2.png")
    (tmp_path / "set/again").symlink_to(tmp_path / "set")
    (tmp_path / "set/x/up").symlink_to(tmp_path)
    (tmp_path / "set/a").symlink_to(tmp_path / "set/x")
    (tmp_path / "set/z").symlink_to(tmp_path / "other/y")
    source = FolderSource(tmp_path / "set", "all")
    assert [e["name"] for e in source] == ["x/1.png", "z/2.png"] and source.class_names == ("x", "z")


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="only: nothing"):
        FolderSource(tmp_path)
    for k in range(12):
        (tmp_path / f"{k}.txt").write_text("x")
    with pytest.raises(ValueError, match=r"only: 12 \.txt files"):
        FolderSource(tmp_path)
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"the validation split of the 1 images .* is empty"):
        FolderSource(tmp_path, "validation", validation_fraction=0.0)
    with pytest.raises(ValueError, match="split is 'test'"):
        FolderSource(tmp_path, "test")
    with pytest.raises(ValueError, match="channels is 4"):
        FolderSource(tmp_path, channels=4)


def test_corrupt_files_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a png")
    save(tmp_path / "cut.jpg", size=(200, 200))
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "float.tif")
    source = FolderSource(tmp_path, "all")
    for k, name in enumerate(("broken.png", "cut.jpg", "float.tif")):
        with pytest.raises(CorruptExample, match=name):
            source[k]
    assert "unreadable" in source.describe()


def test_map_of_another_size_is_corrupt(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "m.png", "L", size=(3, 3))
    write_metadata(tmp_path, {"file_name": "a.png", "segmentation": "m.png"})
    with pytest.raises(CorruptExample, match=r"m\.png is \(3, 3\)"):
        FolderSource(tmp_path, "all")[0]


def test_what_tells_sources_apart(tmp_path):
    """Names and contents of the pictures of the split, not where the folder lies."""
    for k in range(40):
        save(tmp_path / f"set/{k}.bmp", value=(k, k, k), size=(200, 200))
    path = tmp_path / "set"
    before = FolderSource(path, "train", validation_fraction=0.3).identity()
    assert FolderSource(path, "validation", validation_fraction=0.3).identity() != before
    assert str(tmp_path) not in before
    path = path.rename(tmp_path / "moved")
    train = FolderSource(path, "train", validation_fraction=0.3)
    assert train.identity() == before
    objects = FilteredSource(train, LayoutRules(min_objects=0))
    assert objects.identity() != before
    objects.kept.pop()
    assert objects.identity() != FilteredSource(train, LayoutRules(min_objects=0)).identity()
    held_out = FolderSource(path, "validation", validation_fraction=0.3)[0]["name"]
    save(path / held_out, value=(77, 0, 0), size=(200, 200))
    assert train.identity() == before
    name = path / train[3]["name"]
    whole = name.read_bytes()
    assert len(whole) < 2**17
    for k in (0, 60, 2**16, len(whole) - 1):  # a file so small is looked at from end to end
        name.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        assert train.identity() != before, k
    name.write_bytes(whole + b"0")
    assert train.identity() != before
    name.write_bytes(whole)
    assert train.identity() == before
    name.unlink()
    assert train.identity() != before


def test_what_tells_conditions_apart(tmp_path):
    """The metadata of the examples that are asked for, and the contents of their maps and vectors."""
    for k in range(3):
        save(tmp_path / f"{k}.png")
        save(tmp_path / f"map{k}.png", "L")
        np.save(tmp_path / f"{k}.npy", np.full(2, k, np.float32))

    def source(**changes):
        records = [{"file_name": f"{k}.png", "segmentation": f"map{k}.png", "vectors": f"{k}.npy", "text": f"text {k}",
                    "objects": {"bbox": [[0, 0, 3, 4]], "categories": [1]}} for k in range(3)]  # fmt: skip
        records[1] |= changes
        write_metadata(tmp_path, *records)
        return FolderSource(tmp_path, "all")

    before = source().conditions_identity([0, 1])
    assert source().conditions_identity([0, 1]) == before != source().conditions_identity([0, 2])
    for changes in (dict(text="b"), dict(objects={"bbox": [[0, 0, 2, 4]], "categories": [1]}), dict(vectors=[1, 2])):
        assert source(**changes).conditions_identity([0, 1]) != before, changes
        assert source(**changes).identity() == source().identity()
    layouts = [FilteredSource(source(), LayoutRules(min_objects=least)).conditions_identity([1]) for least in (0, 1)]
    assert layouts[0] != layouts[1]
    save(tmp_path / "map1.png", "L", value=1)
    changed = source().conditions_identity([0, 1])
    np.save(tmp_path / "1.npy", np.full(2, 9, np.float32))
    assert len({before, changed, source().conditions_identity([0, 1])}) == 3


def test_shapes_source():
    source = ShapesSource(32, count=3)
    assert len(list(source)) == len(source) == 3 and len(source.class_names) == 64
    held_out = ShapesSource(32, count=3, split="validation")
    assert not np.array_equal(source[0]["image"], held_out[0]["image"])
    assert "3 drawn scenes" in source.describe()
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(ValueError, match="split is 'all'"):
        ShapesSource(split="all")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    from tests.data.fake_tfds.colours import Colours

    data_dir = tmp_path_factory.mktemp("tfds")
    Colours(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir


def test_tfds_without_tensorflow(colours):
    import sys

    source = TfdsSource("colours", "train", colours)
    assert "tensorflow" not in sys.modules
    assert len(source) == 8 and source.class_names == ("dark", "light")
    for example in pickle.loads(pickle.dumps(source)):
        value = int(example["image"][0, 0, 0])
        assert example["image"].shape == (6, 9, 3) and (example["image"] == value).all()
        assert example["label"] == (value >= 80) and example["text"] == f"grey {value}"
        assert example["objects"] == [{"box": [0.25, 0.0, 1.0, 0.5], "class": 3}]
    assert "8 images (colours, train), 2 classes" in source.describe()
    assert len(TfdsSource("colours:1.0.0", "train[:50%]", colours, channels=1)) == 4
    assert TfdsSource("colours", "train", colours, channels=1)[0]["image"].shape == (6, 9, 1)


def test_a_set_prepared_again_is_another(colours, tmp_path):
    def identity(folder, split="train"):
        return TfdsSource("colours", split, folder).identity()

    there = shutil.copytree(colours, tmp_path / "there")
    assert identity(colours) == identity(there) != identity(there, "train[:50%]")
    file = next(there.rglob("*.array_record*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert identity(colours) != identity(there)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Sets with the features of coco_captions and open_images_v4, as TFDS has them."""
    from tests.data.fake_tfds.conditional import CocoCaptions, OpenImagesV4

    data_dir = tmp_path_factory.mktemp("tfds")
    for builder in (CocoCaptions, OpenImagesV4):
        builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir


def test_tfds_captions(sets):
    """All captions of an image are given; the field draws one, by the sample's own random numbers."""
    source = pickle.loads(pickle.dumps(TfdsSource("coco_captions", "train+restval", sets)))
    assert len(source) == 3 and source.object_names[:2] == ("person", "bicycle")
    example = next(e for e in source if e["text"][0].startswith("train 1"))
    assert example["text"] == tuple(f"train 1, told {k}" for k in "abcde")
    assert example["objects"] == [
        {"box": [0.0, 0.25, 0.5, 1.0], "class": 1},
        {"box": [0.0, 0.0, 1.0, 1.0], "class": 0, "group": True},
    ]
    assert example["image"].shape == (6, 9, 3) and "label" not in example

    def draw(seed):
        class Tokenizer:
            def __call__(self, text):
                return text, None

        placed = Placed(example, None, None)
        return Tokens(Tokenizer())(placed, np.random.default_rng(seed))["tokens"]

    assert {draw(seed) for seed in range(40)} == set(example["text"]) and draw(3) == draw(3)
    assert len(list(captions(source))) == 15


def test_tfds_boxes_with_flags_and_chosen_classes(sets, tmp_path, capsys):
    from scripts import count_classes

    source = TfdsSource("open_images_v4", "train", sets)
    expected = [
        {"box": [0.25, 0.0, 1.0, 0.5], "class": 2, "occluded": True, "inside": True},
        {"box": [0.5, 0.5, 0.75, 1.0], "class": 0, "group": True, "depiction": True},
        {"box": [0.0, 0.0, 0.5, 0.5], "class": 2},
    ]
    full = 0 if source[0]["objects"] else 1
    assert source[full]["objects"] == expected and source[1 - full]["objects"] == []
    assert source.annotations(full) == {"name": f"open_images_v4/train/{full}", "objects": expected}
    chosen = tmp_path / "classes.txt"
    with pytest.raises(FileNotFoundError, match=r"(?s)classes\.txt does not exist.*count_classes\.py"):
        TfdsSource("open_images_v4", "train", sets, classes=chosen)
    count_classes.main(["--name=open_images_v4", f"--data_dir={sets}", "--most=1", f"--out={chosen}"])
    assert chosen.read_text() == "/m/c\n" and "1 of 2 classes, 66.7% of the 3 objects" in capsys.readouterr().out
    source = TfdsSource("open_images_v4", "train", sets, classes=chosen)
    assert source.object_names == ("/m/c",)
    assert source[full]["objects"] == [expected[0] | {"class": 0}, expected[2] | {"class": 0}]
    chosen.write_text("/m/x\n")
    with pytest.raises(ValueError, match="unknown class '/m/x'; the set has 3: /m/a"):
        TfdsSource("open_images_v4", "train", sets, classes=chosen)


def test_tfds_that_is_not_prepared(colours):
    with pytest.raises(
        FileNotFoundError,
        match=r"(?s)celeb_a_hq.*tfds build celeb_a_hq/256 --data_dir=.*"
        "--file_format=array_record",
    ):
        TfdsSource("celeb_a_hq/256", "train", colours)
    with pytest.raises(FileNotFoundError, match=r"9\.9\.9"):
        TfdsSource("colours:9.9.9", "train", colours)


def test_a_list_of_classes_that_is_no_text_is_named(tmp_path):
    (tmp_path / "classes.txt").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt is not a text in UTF-8 .*save it"):
        prepared.kept_classes(tmp_path / "classes.txt", ("größe",))
