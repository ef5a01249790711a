"""Sets of pictures: nothing is dropped, and what cannot be read is named."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.sources import FolderSource, ShapesSource
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.errors import DataError, Missing, UsageError
from ldm_jax.evaluation.picture_sets import DataPictures, FolderPictures, NpzPictures
from ldm_jax.images import to_uint8

RANDOM = np.random.default_rng(0)


def test_a_folder_in_the_order_of_paths_in_any_sizes(tmp_path):
    grey = RANDOM.integers(0, 256, (5, 6), np.uint8)
    colour = RANDOM.integers(0, 256, (7, 4, 3), np.uint8)
    deep = RANDOM.integers(0, 65536, (3, 3)).astype(np.uint16)
    (tmp_path / "b").mkdir()
    Image.fromarray(colour).save(tmp_path / "b" / "1.png")
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "c.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    found = FolderPictures(tmp_path)
    images = found.part(0, len(found))
    assert [image.shape for image in images] == [(5, 6, 3), (7, 4, 3), (3, 3, 3)]
    np.testing.assert_array_equal(images[0], np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(images[1], colour)
    np.testing.assert_array_equal(images[2][..., 0], (deep.astype(int) + 128) // 257)
    assert found.settings["size"] == "3 sizes, 3x3 to 5x6" and FolderPictures(tmp_path, 1).settings["size"] == "5x6"
    assert len(FolderPictures(tmp_path, 2)) == 2
    assert FolderPictures(tmp_path, 2).settings["fingerprint"] != found.settings["fingerprint"]
    assert FolderPictures(tmp_path, 2).identity != found.identity
    with pytest.raises(UsageError, match="4 pictures were asked for"):
        FolderPictures(tmp_path, 4)


def test_what_is_no_picture_is_told(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert FolderPictures(tmp_path).notes == []
    for name in ("b.gif", "c.avif", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    found = FolderPictures(tmp_path)
    (line,) = found.notes
    assert "2 files are no pictures (.png, .jpg" in line and "b.gif for one" in line
    assert len(found) == 1 and found.settings["left_out"] == 2
    (tmp_path / "a.png").unlink()
    with pytest.raises(Missing, match=r"holds no pictures .*2 other files, b\.gif for one"):
        FolderPictures(tmp_path)


def test_links(tmp_path):
    """A linked folder is read once; a link to nothing is an error."""
    (tmp_path / "there").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "there" / "a.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "there")
    assert len(FolderPictures(tmp_path / "folder")) == 1
    (tmp_path / "folder" / "b.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(UsageError, match=r"folder/b\.png is no file, but a link to nothing"):
        FolderPictures(tmp_path / "folder")


def test_rotated_pictures_are_as_in_the_data_of_a_run(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(RANDOM.integers(0, 256, (4, 8, 3), np.uint8)).save(tmp_path / "a.png", exif=exif)
    (image,) = FolderPictures(tmp_path).part(0, 1)
    assert image.shape == (8, 4, 3) and FolderPictures(tmp_path).settings["size"] == "8x4"
    np.testing.assert_array_equal(image, FolderSource(tmp_path, "all")[0]["image"])


def test_a_damaged_file_is_named(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(UsageError, match=r"b\.png is not a picture"):
        FolderPictures(tmp_path).part(0, 2)


def test_an_empty_folder(tmp_path):
    with pytest.raises(Missing, match="holds no pictures"):
        FolderPictures(tmp_path)


def test_an_npz(tmp_path):
    images = RANDOM.integers(0, 256, (4, 5, 6, 3), np.uint8)
    np.savez(tmp_path / "some.npz", images)
    found = NpzPictures(tmp_path / "some.npz", 3)
    assert len(found) == 3 and found.settings["size"] == "5x6"
    np.testing.assert_array_equal(found.part(1, 3), images[1:3])
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(Missing, match="holds no images"):
        NpzPictures(tmp_path / "statistics.npz")


def test_data_as_training_sees_them_spread_evenly():
    source, transform = ShapesSource(32, 10), ImageTransform(16)
    found = DataPictures(source, transform, "shapes", 4)
    assert len(found) == 4 and found.settings["size"] == "16x16"
    for image, i in zip(found.part(0, 4), (0, 2, 5, 7)):
        expected = transform(source[i], np.random.default_rng(0))["image"]
        np.testing.assert_array_equal(image, to_uint8(expected))
    again = found.examples(3, 6)  # from the first one again
    np.testing.assert_array_equal(again[1]["image"], found.examples(0, 1)[0]["image"])


def test_pictures_chosen_by_hash_are_parts_of_larger_choices():
    source, transform = ShapesSource(32, 40, "train"), ImageTransform(32)
    few, many = (DataPictures(source, transform, "shapes", count, "hash") for count in (5, 20))
    assert few.numbers.tolist() == many.numbers[:5].tolist() and len(set(many.numbers.tolist())) == 20
    assert few.numbers[0] == min(range(40), key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())
    np.testing.assert_array_equal(few.part(4, 5), many.part(4, 5))
    assert few.identity != DataPictures(source, transform, "shapes", 5).identity
    assert few.settings["chosen"] == "hash"
    with pytest.raises(UsageError, match="choose='first'"):
        DataPictures(source, transform, "shapes", 5, "first")


def with_a_damaged_file(folder, count=4):
    """0.png, 1.png, ... of one colour each; 1.png is cut off."""
    for i in range(count):
        Image.fromarray(np.full((64, 64, 3), 50 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    return FolderSource(folder, "all")


def test_a_damaged_file_of_a_data_set_is_named(tmp_path):
    found = DataPictures(with_a_damaged_file(tmp_path), ImageTransform(16), "training pictures of runs/a")
    with pytest.raises(DataError, match=r"1\.png of the training pictures of runs/a cannot be read: .*Mend it"):
        found.part(0, 4)


def test_the_next_picture_takes_the_place_of_a_damaged_one(tmp_path):
    said, source = [], with_a_damaged_file(tmp_path)
    found = DataPictures(source, ImageTransform(16), "training pictures", replaced=said.append)
    for _ in range(2):
        assert [int(image[0, 0, 0]) for image in found.part(0, 4)] == [0, 100, 100, 150]
    assert len(said) == 1 and "1.png of the training pictures" in said[0] and "takes its place" in said[0]
    assert found.identity != DataPictures(source, ImageTransform(16), "training pictures").identity
    for i in (0, 2, 3):
        (tmp_path / f"{i}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="4 in a row of the training pictures cannot be read"):
        found.part(0, 1)


def test_the_identity_of_conditions(tmp_path):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    found = []
    for text in ("a star", "a moon"):
        (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "text": "{text}"}}')
        found.append(DataPictures(FolderSource(tmp_path, "all"), ImageTransform(16), "some"))
    assert found[0].identity == found[1].identity
    assert found[0].identity_with_conditions != found[1].identity_with_conditions
