"""Images in and out: what is accepted, the grid, PNG files with their settings."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax.errors import RequestError
from ldm_jax.images import Images, grid, pictures, save_png, to_uint8


def test_grid_places_images_row_by_row():
    images = np.stack([np.full((4, 4, 3), v, np.float32) for v in (-1.0, 0.0, 1.0)])
    sheet = grid(images, columns=2, gap=1)
    assert sheet.shape == (11, 11, 3)
    assert (sheet[1, 1, 0], sheet[1, 6, 0], sheet[6, 1, 0], sheet[6, 6, 0]) == (0, 128, 255, 255)


def test_to_uint8_clips_and_rounds():
    values = to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]))
    assert values.tolist() == [0, 0, 128, 255, 255]


def test_png_carries_its_texts(tmp_path):
    save_png(tmp_path / "a" / "x.png", np.zeros((2, 2, 1), np.uint8), {"seed": 3})
    assert Image.open(tmp_path / "a" / "x.png").text == {"seed": "3"}


def test_images_are_an_array_and_more(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    images = Images(list(array), ["a red star", "", "x"], {"seed": 3, "guidance": None})
    assert images.shape == (3, 8, 6, 3) and len(images) == 3 and images[1].shape == (8, 6, 3)
    np.testing.assert_array_equal(np.asarray(images), array)
    assert len(images[1:]) == 2 and images[1:].names == ["", "x"]
    assert images.grid(columns=3).size == (3 * 8 + 2, 8 + 4) and images.pil()[0].size == (6, 8)
    paths = images.save(tmp_path / "out")
    assert [p.name for p in paths] == ["000000_a-red-star.png", "000001.png", "000002_x.png"]
    saved = Image.open(paths[0])
    np.testing.assert_array_equal(np.asarray(saved), array[0])
    assert saved.text == {"seed": "3", "index": "0", "condition": "a red star"}
    mixed = Images([array[0], array[1, :4]])
    with pytest.raises(ValueError, match="one by one"):
        _ = mixed.array
    assert len(mixed.pil()) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.png", "image=nowhere.png does not exist"),
        ([], "an empty list holds no pictures"),
        (np.zeros((4, 4, 3)), "uint8 arrays"),
        (3.5, "uint8 arrays"),
        (np.zeros((2, 3, 4, 5, 3), np.uint8), "uint8 arrays"),
    ],
)
def test_what_is_no_picture_is_named(given, message):
    with pytest.raises(RequestError, match=message):
        pictures("image", given)
