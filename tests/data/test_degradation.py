import numpy as np
import pytest
from PIL import Image
from scipy import ndimage  # comes with jax

from ldm_jax.data import degradation, shapes, transforms


def generator(k=0):
    return np.random.default_rng(k)


def noise_image(height, width):
    return generator(9).random((height, width, 3), np.float32)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.mark.parametrize("kind", degradation.KINDS)
@pytest.mark.parametrize("size", [(64, 64), (32, 48), (256, 256)])
@pytest.mark.parametrize("scale", [2, 4])
def test_sizes_and_determinism(kind, size, scale):
    image = transforms.resize(shapes.draw(0, 1, 64)["image"], size)
    for k in range(4):
        low = degradation.degrade(generator(k), image, scale, kind)
        assert low.shape == (size[0] // scale, size[1] // scale, 3) and low.dtype == np.uint8
        assert np.array_equal(low, degradation.degrade(generator(k), image, scale, kind))


@pytest.mark.parametrize("kind", ["bsr", "bsr_light"])
def test_images_of_a_few_pixels_and_of_one_colour(kind):
    for k in range(60):
        assert degradation.degrade(generator(k), np.zeros((8, 4, 3), np.uint8), 4, kind).shape == (2, 1, 3)
        grey = degradation.degrade(generator(k), np.full((64, 64, 3), 128, np.uint8), 4, kind)
        assert abs(grey.mean() - 128) < 6


def test_light_is_milder_than_full_and_full_is_not_bicubic():
    image = shapes.draw(0, 3, 128)["image"]
    clean = degradation.degrade(generator(), image)
    close = {
        kind: [psnr(degradation.degrade(generator(k), image, 4, kind), clean) for k in range(60)]
        for kind in ("bsr", "bsr_light")
    }
    assert np.mean(close["bsr_light"]) > np.mean(close["bsr"]) + 2
    assert np.mean(close["bsr"]) < 24 and np.mean(close["bsr_light"]) > 24  # 21.9 and 25.2 dB
    assert np.std(close["bsr"]) > 1  # every image is degraded differently


def test_bicubic_is_pillows_and_anti_aliased():
    image = (noise_image(64, 48) * 255).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((12, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(degradation.degrade(generator(), image), expected)


@pytest.mark.parametrize("size", [(9, 7), (10, 25), (40, 31)])
def test_convolution_equals_the_direct_one(size):
    image = noise_image(*size)
    for k in (5, 6, 7, 12, 25):
        kernel = generator(k).random((k, k))
        kernel /= kernel.sum()
        expected = ndimage.convolve(image, kernel[:, :, None], mode="mirror")
        assert np.abs(degradation.convolve(image, kernel) - expected).max() < 1e-5


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_kernels_have_their_variance(angle):
    kernel = degradation.gaussian_kernel(41, (9.0, 4.0), angle)
    y, x = np.mgrid[-20:21, -20:21]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = [[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)]
    assert np.allclose(covariance, turn @ np.diag([9.0, 4.0]) @ turn.T, atol=0.02)
    for size in (5, 6):
        point = degradation.gaussian_kernel(size, (0.0, 0.0))
        assert np.isclose(point.sum(), 1) and (point > 0.2).sum() == (1 if size == 5 else 4)


def test_filters_by_hand():
    line = np.array([0.0, 0.2, 1.0, 0.4], np.float32)
    image = np.repeat(np.repeat(line[None, :, None], 4, 0), 3, 2)

    def row(new, method):
        return degradation.resize(image, (4, new), method)[0, :, 0]

    assert np.allclose(row(2, "linear"), [0.1, 0.7])
    assert np.allclose(row(2, "area"), [0.1, 0.7])
    assert np.allclose(row(8, "linear"), [0, 0.05, 0.15, 0.4, 0.8, 0.85, 0.55, 0.4])
    assert np.allclose(row(8, "area"), np.repeat(line, 2))
    assert np.allclose(row(3, "area"), [0.2 / 3 * 3 / 4, (0.2 * 2 / 3 + 2 / 3) * 3 / 4, (1 / 3 + 0.4) * 3 / 4])
    # Half way between pixels the cubic of a = -0.75 has weights -3/32, 19/32, 19/32, -3/32.
    assert np.allclose(row(2, "cubic"), [19 / 32 * 0.2 - 3 / 32, 19 / 32 * 1.4 - 3 / 32 * 0.6])


def test_filters_agree_with_pillow_where_they_mean_the_same():
    image = noise_image(48, 60)

    def pillow(size, how):
        planes = [np.asarray(Image.fromarray(image[..., k]).resize(size[::-1], how)) for k in range(3)]
        return np.clip(np.stack(planes, -1), 0, 1)

    for size in ((16, 20), (13, 37), (24, 30)):
        ours = degradation.resize(image, size, "antialiased")
        inside = (slice(3, -3), slice(3, -3))  # borders differ: mirrored here, left out there
        assert np.abs(ours - pillow(size, Image.Resampling.BICUBIC))[inside].max() < 2e-4
    # Pillow's box takes a pixel in or leaves it out, so only whole factors compare.
    for size in ((16, 20), (24, 30), (12, 15)):
        assert np.abs(degradation.resize(image, size, "area") - pillow(size, Image.Resampling.BOX)).max() < 1e-5


def test_orders():
    orders = [degradation.random_order(generator(k), degradation.FULL) for k in range(3000)]
    assert all(sorted(order) == sorted(["blur", "blur", "shrink", "finish", "noise", "jpeg"]) for order in orders)
    assert all(order.index("shrink") < order.index("finish") for order in orders)
    assert len({tuple(order) for order in orders}) == 180  # 6! / 2 orders, / 2 as blurs are alike
    light = degradation.random_order(generator(), degradation.LIGHT)
    assert sorted(light) == sorted(["blur", "shrink", "finish", "noise", "jpeg"])


def test_noise_has_the_level_it_should():
    grey = np.full((128, 128, 3), 0.5, np.float32)
    alike = deviations = 0
    for k in range(100):
        noise = degradation.add_noise(generator(k), grey, (10, 10)) - grey
        alike += bool(np.allclose(noise[..., 0], noise[..., 1], atol=1e-6))
        deviations += noise.std() * 255 / 100
        assert noise.std() * 255 < 11
    assert 25 < alike < 55  # grey noise: 0.4
    assert 8 < deviations < 10.3  # the correlated fifth is weaker


def test_shifted_kernel_samples_the_middle_of_a_block():
    """After the shift, every 4th pixel stands for its block of 4 x 4: a ramp must give the blocks' means."""
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], (64, 1, 3))
    never = degradation.Strength(1, 1.0, (7,), (7,), 0.0, (1, 2), (80, 95))
    low = degradation.shrink(generator(2), ramp, 4, never)
    assert low.shape == (16, 16, 3)
    assert np.abs(low[:, 3:-3] - ramp.reshape(16, 4, 16, 4, 3).mean((1, 3))[:, 3:-3]).max() < 2e-3


@pytest.mark.parametrize("kind", ["bsr", "bsr_light"])
def test_degraded_images_are_not_displaced(kind):
    """The mean of many degradations correlates best with the picture itself, not with a shifted one."""
    image = next(scene["image"] for scene in (shapes.draw(0, k, 64) for k in range(99)) if " plain " in scene["text"])
    mean = np.mean([degradation.degrade(generator(k), image, 4, kind) for k in range(80)], 0)

    def likeness(x, y):
        moved = np.roll(image, (y, x), (0, 1))
        clean = degradation.degrade(generator(), moved)
        return np.corrcoef(mean[2:-2, 2:-2].ravel(), clean[2:-2, 2:-2].ravel())[0, 1]

    assert likeness(0, 0) > 0.9
    assert all(likeness(0, 0) > likeness(x, y) for x, y in ((2, 0), (-2, 0), (0, 2), (0, -2)))


def test_wrong_arguments_are_refused():
    image = np.zeros((30, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="'blur', but must be one of bicubic, bsr, bsr_light"):
        degradation.degrade(generator(), image, 2, "blur")
    with pytest.raises(ValueError, match="30x32 cannot be made 4 times smaller"):
        degradation.degrade(generator(), image, 4)
    with pytest.raises(ValueError, match="not float32"):
        degradation.degrade(generator(), image.astype(np.float32))
    with pytest.raises(ValueError, match=r"uint8 \[32, 32, 1\]"):
        degradation.degrade(generator(), np.zeros((32, 32, 1), np.uint8))
