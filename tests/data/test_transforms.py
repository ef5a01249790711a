import numpy as np
import pytest

from ldm_jax.data import transforms
from ldm_jax.data.transforms import ImageTransform


def rng():
    return np.random.default_rng(0)


def picture(height, width, channels=3):
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_float_and_back_is_exact_for_all_values():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    as_float = transforms.to_float(values)
    assert as_float.dtype == np.float32 and as_float.min() == -1 and as_float.max() == 1
    assert np.array_equal(transforms.to_uint8(as_float), values)


def test_to_uint8_rounds_and_clips():
    assert transforms.to_uint8(np.array([-3.0, 3.0, 0.0, 1 / 127.5])).tolist() == [0, 255, 128, 128]


def test_shrinking_is_anti_aliased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    for interpolation in ("bicubic", "bilinear", "lanczos", "box"):
        small = transforms.resize(stripes, (8, 8), interpolation)
        assert np.abs(small.astype(int) - 127).max() <= 12, interpolation


def test_shorter_side_keeps_proportions():
    assert transforms.resize_shorter(picture(40, 60), 20).shape == (20, 30, 3)
    assert transforms.resize_shorter(picture(61, 40, 1), 20).shape == (30, 20, 1)


def test_crops():
    image = picture(7, 10)
    assert np.array_equal(transforms.center_crop(image, (4, 4)), image[1:5, 3:7])
    tops = {transforms.random_crop(image, (7, 4), np.random.default_rng(k)).tobytes() for k in range(100)}
    assert len(tops) == 7
    with pytest.raises(ValueError, match="leaves the image"):
        transforms.center_crop(image, (8, 8))


def test_flip_mirrors_half():
    image = picture(2, 3)
    generator = rng()
    flipped = [not np.array_equal(transforms.random_flip(image, generator), image) for _ in range(200)]
    assert 70 < sum(flipped) < 130


@pytest.mark.parametrize("transform", [
    ImageTransform(16), ImageTransform((16, 16), resize_to=20, crop="random", flip=True),
    ImageTransform(16, resize="stretch", crop="none"), ImageTransform(16, resize="none", crop="random")])
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
    assert np.array_equal(transforms.to_uint8(out), image)


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
    with pytest.raises(ValueError, match=r"odd\.png is 9x9"):
        ImageTransform(8, resize="none", crop="none")({"image": picture(9, 9), "name": "odd.png"}, rng())
