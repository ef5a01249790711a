"""Image folders, prepared data sets, cached latents and tokenizers in a bucket: what is read is what a folder gives."""

import json
import pickle
import shutil
import tempfile

import numpy as np
import pytest
from PIL import Image

from ldm_jax import files, images, recipes
from ldm_jax.data import batches, copies, folder, latents, metadata, prepared, sources, tokenizers
from ldm_jax.data.sources import CorruptExample, FolderSource, ShapesSource, TfdsSource
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.errors import DataError, Missing, Outage, ReadFailed, UsageError, WriteFailed
from ldm_jax.web import form
from tests import bucket_tools
from tests.bucket_tools import OBJECTS, REQUESTS, HttpError, forbidden, put, put_folder, refusing
from tests.data.test_latents import FACTS, SHAPE, numbered
from tests.data_tools import take


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty bucket, and an empty place for copies."""
    monkeypatch.setenv(copies.PLACE, str(tmp_path / "copies"))
    with bucket_tools.bucket() as address:
        yield address


def picture(path, value, mode="RGB", size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def same(one, other, place=True):
    """Two sources give the same, to the bit. place: both are on a disk, or both in a bucket."""
    assert len(one) == len(other) > 0 and one.class_names == other.class_names and one.alike() == other.alike()
    assert (one.identity() == other.identity()) == place
    numbers = range(len(one))
    assert not place or one.conditions_identity(numbers) == other.conditions_identity(numbers)
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_classes_and_splits(bucket, tmp_path):
    for k, name in enumerate(("train/cat/a.JPG", "train/dog/deep/b.png", "train/dog/c.png", "val/cat/d.bmp")):
        picture(tmp_path / "set" / name, (k, 9, 9))
    for name in ("train/.x.png", "train/.hidden/x.png", "__MACOSX/train/x.png"):
        picture(tmp_path / "set" / name, 0)
    put_folder("bucket/set", tmp_path / "set")
    put("bucket/set/train/cat/", b"")  # as consoles make a "folder"
    put("bucket/settings/x.png", b"")  # another folder, whose name begins alike
    for split in ("train", "validation"):
        source = FolderSource(f"{bucket}/set", split)
        same(source, FolderSource(tmp_path / "set", split), place=False)
        same(pickle.loads(pickle.dumps(source)), source)
    assert "gs://bucket/set" in source.describe() and source.class_names == ("cat", "dog")


def test_metadata_and_all_that_it_names(bucket, tmp_path):
    folder, lines = tmp_path / "set", []
    for k in range(150):  # more than one thread reads at once
        picture(folder / f"{k}.png", (k, 0, 0))
        lines.append({"file_name": f"{k}.png", "text": [f"é {k}", "b"], "label": k % 3, "vectors": [[k, 1.5], [2, 3]]})
    picture(folder / "maps/m.png", 7, "L")
    np.save(folder / "maps/v.npy", np.ones((3, 2), np.float16))
    lines[4] |= {"segmentation": "maps/m.png", "mask": "maps/m.png", "vectors": "maps/v.npy"}
    lines[5] |= {"objects": {"bbox": [[0, 0, 3, 2]], "categories": [1]}}
    (folder / "metadata.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, lines)), encoding="utf-8")
    put_folder("bucket/set", folder)
    source = FolderSource(f"{bucket}/set", "all")
    same(source, FolderSource(folder, "all"), place=False)
    assert [entry["name"] for entry in source._entries] == sorted(f"{k}.png" for k in range(150))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"file_name": "b.png"}, "line 2: .*gs://bucket/set/b.png does not exist"),
        ({"file_name": "../a.png"}, "line 2: .*leaves the folder gs://bucket/set"),
        ({"file_name": "a.png", "vectors": "metadata.jsonl"}, "line 2: .*not a .npy file"),
        ({"file_name": "a.png", "vectors": "wide.npy"}, "line 3: vectors of 2 numbers, but those before have 3"),
    ],
)
def test_wrong_metadata_is_named(bucket, tmp_path, record, message):
    picture(tmp_path / "a.png", 0)
    np.save(tmp_path / "wide.npy", np.ones(3))
    put_folder("bucket/set", tmp_path)
    lines = [{"file_name": "a.png"}, record, {"file_name": "a.png", "vectors": [1, 2]}]
    put("bucket/set/metadata.jsonl", "\n".join(map(json.dumps, lines)).encode())
    with pytest.raises(DataError, match=rf"gs://bucket/set/metadata\.jsonl, {message}"):
        FolderSource(f"{bucket}/set", "all")


def test_what_is_wrong_with_a_folder_is_said(bucket):
    with pytest.raises(FileNotFoundError, match="no folder gs://bucket/none"):
        FolderSource(f"{bucket}/none")
    put("bucket/set/a.txt", b"")
    with pytest.raises(DataError, match=r"in gs://bucket/set, only: 1 \.txt files"):
        FolderSource(f"{bucket}/set")
    put("bucket/set/metadata.jsonl", b"version https://git-lfs.github.com/spec/v1")
    put("bucket/set/a.png", b"")
    with pytest.raises(DataError, match=r"gs://bucket/set/metadata\.jsonl cannot be read: this is a git-LFS pointer"):
        FolderSource(f"{bucket}/set")


def test_a_picture_that_is_broken_and_one_that_does_not_come(bucket, tmp_path, monkeypatch):
    """The first is left out of the training; of the second nothing is known, so it is an error."""
    picture(tmp_path / "b.png", 0)
    np.save(tmp_path / "v.npy", np.ones(3))
    put_folder("bucket/set", tmp_path)
    put("bucket/set/a.png", b"\x89PNG cut short")
    source = FolderSource(f"{bucket}/set", "all")
    with pytest.raises(CorruptExample, match=r"a\.png"):
        source[0]
    source[1]
    del OBJECTS["bucket/set/b.png"]
    with pytest.raises(CorruptExample, match=r"b\.png"):
        source[1]
    put("bucket/set/b.png", (tmp_path / "b.png").read_bytes())
    line = {"file_name": "b.png", "vectors": "v.npy"}
    put("bucket/set/metadata.jsonl", json.dumps(line).encode())
    with_vectors, opened = FolderSource(f"{bucket}/set", "all"), bucket_tools.FileSystem._open
    for name in ("b.png", "v.npy"):

        def refused(self, path, mode="rb", name=name, **options):
            if path.endswith(name):
                raise RuntimeError("503")
            return opened(self, path, mode, **options)

        monkeypatch.setattr(bucket_tools.FileSystem, "_open", refused)
        with pytest.raises(ReadFailed, match=rf"gs://bucket/set/{name} could not be read: RuntimeError: 503"):
            with_vectors[0]
    folder.forget()
    with pytest.raises(ReadFailed):
        FolderSource(f"{bucket}/set", "all")
    line = {"file_name": "b.png", "objects": {"bbox": [], "categories": []}}
    put("bucket/set/metadata.jsonl", json.dumps(line).encode())
    monkeypatch.setattr(bucket_tools.FileSystem, "_open", lambda self, path, mode="rb", **options: (
        refused(self, path, mode, "b.png", **options)))  # fmt: skip
    with pytest.raises(ReadFailed):
        FolderSource(f"{bucket}/set", "all")


def test_a_folder_that_may_not_be_listed_is_no_empty_one(bucket, tmp_path):
    picture(tmp_path / "a/1.png", 0)
    put_folder("bucket/set", tmp_path)
    with refusing("bucket/set", forbidden()), pytest.raises(ReadFailed, match=r"Forbidden.*application-default login"):
        FolderSource(f"{bucket}/set", "all")


ERRORS = [(HttpError(401), False), (HttpError(503), True), (HttpError(429), True), (forbidden(), False),
          (ConnectionResetError(), True), (TimeoutError(), True), (ValueError("Bad Request"), False)]  # fmt: skip


@pytest.mark.parametrize("error, passes", ERRORS, ids=lambda x: f"{x}"[:12])
def test_what_a_client_raises_is_told(bucket, tmp_path, error, passes):
    """In a sentence with the remedy; and whether it is an outage."""
    picture(tmp_path / "set/a.png", 0)
    put_folder("bucket/set", tmp_path / "set")
    source, store = FolderSource(f"{bucket}/set", "all"), store_in(f"{bucket}/latents")
    place = files.at(f"{bucket}/set")
    reads = {
        "scan": lambda: FolderSource(place, "all"),
        "image": lambda: source[0],
        "first image": source.describe,
        "fingerprint": source.identity,
        "tokenizer": lambda: tokenizers.TextTokenizer(f"{bucket}/words"),
        "prepared set": lambda: prepared.folder_of("colours", place),
        "copy": lambda: copies.of_folder(place, "a.png"),
        "classes": lambda: prepared.kept_classes(f"{bucket}/classes", ()),
        "latents": lambda: store_in(f"{bucket}/latents"),
        "shards": store.missing,
        "shards here": store.bring,
        "mistaken": lambda: files.mistaken(place / "a.png"),
        "names": lambda: files.names(place),
        "folder": lambda: files.is_folder(place),
        "file": lambda: files.copy_file(place / "a.png", tmp_path / "a.png"),
    }
    writes = {
        "shard": lambda: store.write(0, numbered(store.indices(0))),
        "words": lambda: tokenizers.train_wordpiece(["a"], 60, f"{bucket}/words"),
        "removed": lambda: files.remove_folder(place),
    }
    for kind, calls in ((ReadFailed, reads), (WriteFailed, writes)):
        for name, call in calls.items():
            folder.forget()
            with refusing("bucket/", error), pytest.raises(kind, match=r"gs://bucket/.* could not be ") as told:
                call()
            assert isinstance(told.value, Outage) == passes, name
            assert ("application-default login" in str(told.value)) != passes, name
            again = pickle.loads(pickle.dumps(told.value))  # as from a worker process
            assert type(again) is type(told.value) and str(again) == str(told.value)


def test_a_fingerprint_is_of_what_is_listed(bucket):
    """A file that is not there changes it, and an error is none."""
    put("bucket/set/a.png", b"1" * 200_000)
    place = files.at(f"{bucket}/set")
    before = sources.fingerprint(place, ["a.png", "b.png"])
    assert before == sources.fingerprint(place, ["a.png", "b.png"]) != sources.fingerprint(place, ["a.png"])
    put("bucket/set/b.png", b"")
    assert sources.fingerprint(place, ["a.png", "b.png"]) != before
    put("bucket/set/a.png", b"1" * 100_000 + b"2" + b"1" * 99_999)  # in the middle
    del OBJECTS["bucket/set/b.png"]
    assert sources.fingerprint(place, ["a.png", "b.png"]) != before


def test_requests_are_few(bucket, tmp_path):
    for k in range(40):
        picture(tmp_path / f"{k}.png", k)
    put_folder("bucket/set", tmp_path)
    REQUESTS.clear()
    train, validation = (FolderSource(f"{bucket}/set", split, validation_fraction=0.5) for split in sources.SPLITS[:2])
    assert train.identity() != validation.identity() and REQUESTS == [("find", "bucket/set")]
    REQUESTS.clear()
    name = train[0]["name"]
    assert [("read", f"bucket/set/{name}")] == REQUESTS


def test_a_scan_that_has_failed_is_not_remembered(bucket, tmp_path):
    OBJECTS["bucket/set/x.txt"] = b"", 1
    with pytest.raises(DataError):
        FolderSource(f"{bucket}/set", "all")
    picture(tmp_path / "a.png", 0)
    OBJECTS["bucket/set/a.png"] = (tmp_path / "a.png").read_bytes(), 1
    assert len(FolderSource(f"{bucket}/set", "all")) == 1


def test_boxes_in_pixels_need_the_beginning_of_a_picture(bucket, tmp_path, monkeypatch):
    """All of it where that does not say the size; with the same result as of a folder."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.png", "b.jpg", "c.bmp", "d.tif", "e.webp"):
        options = {"quality": 100} if name == "b.jpg" else {"lossless": True} if name == "e.webp" else {}
        noise.save(tmp_path / name, exif=turned, **options)
        assert (tmp_path / name).stat().st_size > metadata.HEAD
    (tmp_path / "f.png").write_bytes(b"")
    lines = [{"file_name": name, "objects": {"bbox": [[0, 0, 100, 100]], "categories": [1]}}
             for name in ("a.png", "b.jpg", "c.bmp", "d.tif", "e.webp", "f.png")]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    put_folder("bucket/set", tmp_path)
    whole, opened = [], files.opened
    monkeypatch.setattr(images, "opened", lambda path, most=None: whole.append((path.name, most)) or opened(path, most))
    there, here = FolderSource(f"{bucket}/set", "all"), FolderSource(tmp_path, "all")
    assert [there.annotations(i) for i in range(6)] == [here.annotations(i) for i in range(6)]
    assert sorted(name for name, most in whole if most is None) == ["d.tif", "e.webp", "f.png"]


def test_nothing_is_left_of_what_was_fetched(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = tokenizers.train_wordpiece(["a b"], 60, f"{bucket}/words")
    tokenizer = tokenizers.TextTokenizer(made, 9)
    assert not list(tmp_path.glob("ldm_jax.*"))
    tokenizer.save(tmp_path / "saved")
    assert np.array_equal(tokenizers.TextTokenizer(tmp_path / "saved", 9)("a")[0], tokenizer("a")[0])
    put("bucket/file", b"12345")
    assert bytes(files.mapped(f"{bucket}/file")) == b"12345" and not list(tmp_path.glob("ldm_jax.*"))


def test_the_page_lists_no_bucket(bucket):
    config = recipes.load("quickstart_class:tiny").unlock()
    config.data.update(source="folder", path=f"{bucket}/set")
    REQUESTS.clear()
    assert form._of_data(config, "label") == () and not REQUESTS
    config.data.update(source="tfds", name="colours")
    with refusing("bucket/", HttpError(503)):
        assert form._of_data(config, "label") == ()


def test_a_client_keeps_no_listing(bucket):
    """Other hosts write, too; and a file is not looked for in a list of a million."""
    import fsspec

    files.at(bucket)
    assert fsspec.config.conf["gcs"]["use_listings_cache"] is False


def test_worker_processes_read_it(tmp_path):
    for k in range(8):
        picture(tmp_path / f"images/set/{k}.png", (30 * k, 0, 0), size=(8, 8))
    with bucket_tools.bucket_on_disk(tmp_path):
        found, expected = (
            take(batches.batches(FolderSource(path, "all"), ImageTransform(8), 4, seed=0, workers=workers), 3)
            for path, workers in (("gs://images/set", 2), (tmp_path / "images/set", 0))
        )
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(found, expected))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    from tests.data.fake_tfds.colours import Colours

    data_dir = tmp_path_factory.mktemp("tfds")
    Colours(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir


def test_a_prepared_set_is_copied_once(bucket, colours, tmp_path, monkeypatch, capsys):
    put_folder("bucket/tfds", colours)
    data_dir = f"{bucket}/tfds"
    for options in ({}, {"split": "train[:50%]"}):
        same(TfdsSource("colours", data_dir=data_dir, **options), TfdsSource("colours", data_dir=colours, **options))
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    assert len(TfdsSource("colours:1.0.0")) == 8
    said = capsys.readouterr().out
    assert said.count("copying") == 1 and "copying gs://bucket/tfds/colours/1.0.0 to " in said
    with pytest.raises(FileNotFoundError, match=r"(?s)celeb is not prepared: no gs://bucket/tfds/celeb"):
        TfdsSource("celeb")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    assert TfdsSource("colours")  # it is there
    shutil.rmtree(tmp_path / "copies")
    with pytest.raises(Missing, match=r"room for a copy of gs://bucket/tfds/colours/1\.0\.0, .*LDM_JAX_COPIES=DIR"):
        TfdsSource("colours")


def test_a_set_that_was_prepared_anew_is_copied_anew(bucket, colours, capsys):
    put_folder("bucket/tfds", colours)
    assert TfdsSource("colours", data_dir=f"{bucket}/tfds").class_names == ("dark", "light")
    for name in [name for name in OBJECTS if name.endswith("label.labels.txt") and "objects" not in name]:
        put(name, b"night\nlight\n\n")
    assert TfdsSource("colours", data_dir=f"{bucket}/tfds").class_names == ("night", "light")
    assert capsys.readouterr().out.count("copying") == 2


def test_a_copy_that_was_interrupted_goes_on(bucket, tmp_path, monkeypatch):
    for name in "abc":
        put(f"bucket/x/{name}/file", name.encode() * 100)
    origin, folder = files.at(f"{bucket}/x"), tmp_path / "here"
    sizes = {name: seen.size for name, seen in files.listed(origin).items()}
    copied, whole = files.copy_file, []

    def fails(path, target):
        if whole:
            target.write_bytes(b"part")
            raise OSError(28, "No space left on device")
        whole.append(path)
        copied(path, target)

    monkeypatch.setattr(files, "copy_file", fails)
    monkeypatch.setattr(copies, "_THREADS", 1)
    with pytest.raises(OSError, match="No space"):
        copies.bring(origin, folder, sizes)
    assert len([path for path in folder.rglob("file") if path.stat().st_size == 100]) == 1
    monkeypatch.setattr(files, "copy_file", lambda path, target: (whole.append(path), copied(path, target)))
    monkeypatch.setattr(copies, "_LEFT", -1)
    copies.bring(origin, folder, sizes)
    assert len(set(whole)) == len(whole) == 3
    assert sorted(files.names(folder)) == ["a/file", "b/file", "c/file", copies.ORIGIN]
    assert (folder / "b/file").read_bytes() == b"b" * 100


def test_names_of_classes(bucket, tmp_path):
    put("bucket/classes.txt", "größe\r\nb\n".encode())
    assert prepared.kept_classes(f"{bucket}/classes.txt", ("b", "x", "größe")) == {2: 0, 0: 1}
    with pytest.raises(FileNotFoundError, match="gs://bucket/none does not exist"):
        prepared.kept_classes(f"{bucket}/none", ())
    assert form._lines(f"{bucket}/classes.txt") == ("größe", "b")


def store_in(folder, **facts):
    return latents.open_store(folder, FACTS | facts, 10, SHAPE, shard_bytes=4 * 4 * 96)


def test_hosts_write_latents_together(bucket, tmp_path, monkeypatch):
    """Each has a disk of its own; afterwards all have all, and so has a run that comes later."""

    def on(host):
        monkeypatch.setenv(copies.PLACE, str(tmp_path / host))
        return store_in(f"{bucket}/latents")

    one, other = on("one"), on("other")
    assert one.missing() == other.missing() == [0, 1, 2] and one.folder != other.folder
    for store, shards in ((one, (0, 2)), (other, (1,))):
        for shard in shards:
            store.write(shard, numbered(store.indices(shard)))
    for store in (one, other, on("later")):
        assert store.missing() == []
        store.bring()
        again = pickle.loads(pickle.dumps(store))
        assert [float(again[i][0, 0, 0, 0]) for i in range(10)] == list(range(10))
    objects = sorted(name for name in OBJECTS if "latents" in name)
    records = [f"bucket/latents/latents-0000{k}-of-00003.array_record" for k in range(3)]
    assert objects == [*records, "bucket/latents/latents.json"]
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(DataError, match=r"(?s)latents in gs://bucket/latents were made from something else.*abc"):
        store_in(f"{bucket}/latents", first_stage="other")


def test_latents_that_were_made_anew_are_not_those_of_before(bucket):
    first = store_in(f"{bucket}/latents")
    for name in list(OBJECTS):
        del OBJECTS[name]
    second = store_in(f"{bucket}/latents", first_stage="other")
    assert first.folder != second.folder and second.missing() == [0, 1, 2]


def test_damaged_latents_are_named(bucket, tmp_path, monkeypatch):
    store = store_in(f"{bucket}/latents")
    for shard in range(3):
        store.write(shard, numbered(store.indices(shard)))
    name = "bucket/latents/latents-00001-of-00003.array_record"
    put(name, OBJECTS[name][0][:-50])
    monkeypatch.setenv(copies.PLACE, str(tmp_path / "other"))
    with pytest.raises(DataError, match=rf"gs://{name} is damaged, and 0 more: remove them"):
        store_in(f"{bucket}/latents").bring()


def test_a_damaged_copy_of_latents_is_made_anew(bucket):
    """It has the right size; the bucket's own is sound."""
    store = store_in(f"{bucket}/latents")
    for shard in range(3):
        store.write(shard, numbered(store.indices(shard)))
    path = store.path(1)
    sound = path.read_bytes()
    path.write_bytes(bytes(len(sound)))
    REQUESTS.clear()
    store.bring()
    assert path.read_bytes() == sound and len([name for kind, name in REQUESTS if kind == "read"]) == 1
    assert f"{bucket}/latents" in (store.folder / copies.ORIGIN).read_text()


def test_a_copy_that_is_cut_short_does_not_get_its_name(bucket, tmp_path):
    put("bucket/x/file", b"1" * 100)
    with pytest.raises(ReadFailed, match="gs://bucket/x/file has 101 bytes by its bucket, but others came"):
        copies.bring(files.at(f"{bucket}/x"), tmp_path / "here", {"file": 101})
    with pytest.raises(ReadFailed, match="gs://bucket/x/none was listed, but is not there"):
        copies.bring(files.at(f"{bucket}/x"), tmp_path / "here", {"none": 101})
    assert files.names(tmp_path / "here") == [copies.ORIGIN]


def test_room_for_latents(bucket, monkeypatch):
    store = store_in(f"{bucket}/latents")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30 - 2000, 2000))
    assert "room for a copy of gs://bucket/latents, " in store.lacking()
    for shard in (0, 1):
        store.write(shard, numbered(store.indices(shard)))
    assert store.lacking() == ""  # 768 bytes more


def test_tokenizers(bucket, tmp_path):
    texts = list(tokenizers.captions(ShapesSource(32, 8)))
    local = tokenizers.train_wordpiece(texts, 200, tmp_path / "here")
    there = tokenizers.train_wordpiece(texts, 200, f"{bucket}/there")
    assert str(there) == "gs://bucket/there" and set(OBJECTS) == {f"bucket/there/{p.name}" for p in local.iterdir()}
    one, other = (tokenizers.TextTokenizer(folder, 9) for folder in (local, there))
    assert np.array_equal(one("a red circle")[0], other("a red circle")[0]) and other.name == "gs://bucket/there"
    assert np.array_equal(pickle.loads(pickle.dumps(other))("a star")[0], one("a star")[0])
    address = tokenizers.TextTokenizer(local.as_uri(), 9)
    assert np.array_equal(one("a red circle")[0], address("a red circle")[0])
    with pytest.raises(FileNotFoundError, match="no tokenizer 'gs://bucket/none': there is no such folder"):
        tokenizers.TextTokenizer(f"{bucket}/none")
    put("bucket/there/tokenizer.json", b"{")
    with pytest.raises(DataError, match="the tokenizer in gs://bucket/there cannot be read"):
        tokenizers.TextTokenizer(there)
    with pytest.raises(UsageError, match="tokenizer: s3://b/x is an address"):
        tokenizers.TextTokenizer("s3://b/x")
