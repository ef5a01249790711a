import numpy as np
import pytest

from ldm_jax import images
from ldm_jax.data import transforms
from ldm_jax.data.transforms import ImageTransform


def rng():
    return np.random.default_rng(0)


def picture(height, width, channels=3):
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_float_and_back_is_exact_for_all_values():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    as_float = images.to_float(values)
    assert as_float.dtype == np.float32 and as_float.min() == -1 and as_float.max() == 1
    assert np.array_equal(images.to_uint8(as_float), values)


def test_to_uint8_rounds_and_clips():
    assert images.to_uint8(np.array([-3.0, 3.0, 0.0, 1 / 127.5])).tolist() == [0, 255, 128, 128]


def test_shrinking_is_anti_aliased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    for interpolation in ("bicubic", "bilinear", "lanczos", "box"):
        small = transforms.resize(stripes, (8, 8), interpolation)
        assert np.abs(small.astype(int) - 127).max() <= 12, interpolation


def test_sizes_keep_proportions():
    assert transforms.with_shorter((40, 60), 20) == (20, 30)
    assert transforms.with_shorter((61, 40), 20) == (30, 20)
    assert transforms.covering((40, 60), (20, 20)) == (20, 30)
    assert transforms.covering((40, 60), (20, 45)) == (30, 45)


def test_crops():
    image = picture(7, 10)
    center = ImageTransform(4, resize="none").place({"image": image}, rng())
    assert np.array_equal(center.image(image), image[1:5, 3:7])
    random = ImageTransform((7, 4), resize="none", crop="random")
    cuts = {random.place({"image": image}, np.random.default_rng(k)).cut for k in range(100)}
    assert cuts == {(0, left, 7, 4) for left in range(7)}
    with pytest.raises(ValueError, match="leaves the image"):
        transforms.crop(image, 0, 0, (8, 8))


def test_flip_mirrors_half():
    image = picture(2, 2)
    transform, generator = ImageTransform(2, flip=True), rng()
    placings = [transform.place({"image": image}, generator) for _ in range(200)]
    assert 70 < sum(placing.flip for placing in placings) < 130
    for placing in placings[:9]:
        assert np.array_equal(placing.image(image), image[:, ::-1] if placing.flip else image)


def test_random_squares():
    image = picture(40, 90)
    pixels = ImageTransform(16, resize="square")
    share = ImageTransform(16, resize="square", smallest_square=0.5)
    for transform, smallest in ((pixels, 16), (share, 20)):
        windows = [transform.place({"image": image}, np.random.default_rng(k)).window for k in range(300)]
        sides = [window[2] for window in windows]
        assert min(sides) in (smallest, smallest + 1) and max(sides) in (39, 40)
        assert all(h == w and 0 <= top <= 40 - h and 0 <= left <= 90 - w for top, left, h, w in windows)
    placing = pixels.place({"image": image}, rng())
    top, left, side, _ = placing.window
    assert np.array_equal(
        placing.image(image), transforms.resize(image[top : top + side, left : left + side], (16, 16))
    )
    assert np.allclose(placing.shown, (left / 90, top / 40, (left + side) / 90, (top + side) / 40))
    assert pixels({"image": picture(9, 12)}, rng())["image"].shape == (16, 16, 3)  # enlarged


def test_shown_is_where_the_pixels_come_from():
    """An image whose colours are its coordinates: what is seen at the borders must be what `shown` says."""
    y, x = np.mgrid[:100, :160]
    image = np.stack([x * 255 / 159, y * 255 / 99, 0 * x], -1).round().astype(np.uint8)
    for k, transform in enumerate(
        [
            ImageTransform(32),
            ImageTransform(32, resize_to=50, crop="random", flip=True),
            ImageTransform(32, resize="square", flip=True),
            ImageTransform((20, 40), resize="stretch"),
            ImageTransform(32, resize="none", crop="random", flip=True),
        ]
        * 3
    ):
        placing = transform.place({"image": image}, np.random.default_rng(k))
        seen = placing.image(image, "bilinear").astype(float) / 255
        seen = seen[:, ::-1] if placing.flip else seen
        x0, y0, x1, y1 = placing.shown
        corners = [*seen[0, 0, :2], *seen[-1, -1, :2]]
        assert np.allclose(corners, [x0, y0, x1, y1], atol=0.03)


def test_maps_follow_the_image_without_new_values():
    image = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), (37, 51, 1))
    for transform in (
        ImageTransform(16, crop="random", flip=True, interpolation="nearest"),
        ImageTransform(16, resize="square", flip=True, interpolation="nearest"),
    ):
        for k in range(5):
            placing = transform.place({"image": image}, np.random.default_rng(k))
            assert np.array_equal(placing.map(image[..., 0]), placing.image(image, "nearest")[..., 0])
            assert set(np.unique(placing.map(image[..., 0]))) <= {0, 7, 255}
    with pytest.raises(ValueError, match="36x51 does not belong to an image of 37x51"):
        placing.map(image[:-1, :, 0])


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(16),
        ImageTransform((16, 16), resize_to=20, crop="random", flip=True),
        ImageTransform(16, resize="stretch", crop="none"),
        ImageTransform(16, resize="none", crop="random"),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (33, 50), (5, 3), (1, 1), (20, 7)])
def test_every_image_comes_out_at_the_size(transform, size):
    for channels in (1, 3):
        example = {"image": picture(*size, channels), "label": 3, "text": "x", "name": "y"}
        out = transform(example, rng())
        assert out["image"].shape == (16, 16, channels) and out["image"].dtype == np.float32
        assert np.abs(out["image"]).max() <= 1
        assert out["label"] == 3 and out["label"].dtype == np.int32
        assert set(out) == {"image", "label"}


def test_not_square():
    assert ImageTransform((8, 24))({"image": picture(30, 30)}, rng())["image"].shape == (8, 24, 3)


def test_plain_image_passes_unchanged():
    image = picture(16, 16)
    out = ImageTransform(16)({"image": image}, rng())["image"]
    assert np.array_equal(images.to_uint8(out), image)


def test_random_numbers_come_from_the_generator_alone():
    transform = ImageTransform(8, resize="none", crop="random", flip=True)
    example = {"image": picture(30, 30)}
    first, second = (transform(example, np.random.default_rng(5))["image"] for _ in range(2))
    assert np.array_equal(first, second)


def test_wrong_choices_are_refused():
    with pytest.raises(ValueError, match="crop is 'centre'"):
        ImageTransform(8, crop="centre")
    with pytest.raises(ValueError, match="interpolation is 'cubic'"):
        ImageTransform(8, interpolation="cubic")
    with pytest.raises(ValueError, match="resize_to = 4"):
        ImageTransform(8, resize_to=4)
    with pytest.raises(ValueError, match="gives squares"):
        ImageTransform((8, 9), resize="square")
    with pytest.raises(ValueError, match=r"smallest_square = 0\.5"):
        ImageTransform(8, smallest_square=0.5)
    with pytest.raises(ValueError, match=r"odd\.png is 9x9"):
        ImageTransform(8, resize="none", crop="none")({"image": picture(9, 9), "name": "odd.png"}, rng())
