"""Low-resolution images for super-resolution: bicubic, and the BSR degradations (Zhang et al. 2021).

BSR applies blur, resizing, noise and JPEG in a random order, so that a model does not learn to invert one filter only.
The two variants are those of the latent-diffusion repository: "bsr", and the weaker "bsr_light", with which its
released super-resolution model was trained. Within this module images are float32 [H,W,3] in [0,1].

Of the random filters "linear", "cubic" and "area" (as in OpenCV), only "area" averages when it shrinks: aliasing is
part of the degradation. No large matrix products are used: BLAS would start threads that compete with the input
pipeline.
"""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ldm_jax.data import transforms
from ldm_jax.errors import ConfigError

KINDS = ("bicubic", "bsr", "bsr_light")
_RANDOM_FILTERS = ("linear", "cubic", "area")
_HALVE_FIRST = 0.25
_JPEG = 0.9
_SHIFTED_KERNEL = 25


@dataclass(frozen=True)
class Strength:
    """The differences between "bsr" and "bsr_light". Pairs are ranges that include both ends.

    blurs: number of blurs. blur_share: their eigenvalues and sigmas are multiplied by it.
    anisotropic_sizes, isotropic_sizes: possible sides of the kernels, equally likely.
    random_resize: probability that the first shrinking is by a random factor; otherwise it is a Gaussian and a stride.
    noise: sigma, an integer in units of 1/255. jpeg: quality.
    """

    blurs: int
    blur_share: float
    anisotropic_sizes: tuple[int, ...]
    isotropic_sizes: tuple[int, ...]
    random_resize: float
    noise: tuple[int, int]
    jpeg: tuple[int, int]


FULL = Strength(2, 1.0, tuple(range(7, 26, 2)), tuple(range(7, 26, 2)), 0.75, (2, 25), (30, 95))
LIGHT = Strength(1, 0.25, tuple(range(5, 15)), (5, 6, 7), 0.8, (1, 2), (80, 95))


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def taps(size: int, new: int, method: str) -> tuple[np.ndarray, np.ndarray]:
    """A filter along one axis, from `size` to `new` pixels: for each new pixel, the old pixels int [new,n] and their
    weights float32 [new,n].

    OpenCV's "linear" uses the 2 nearest pixels, its "cubic" 4 (a = -0.75); both repeat the border. OpenCV's "area"
    weighs pixels by their overlap with the new one. "antialiased" is cubic (a = -0.5), widens when it shrinks, and
    mirrors the border.
    """
    step = size / new
    if method == "area":
        start = np.arange(new)[:, None] * step
        pixels = np.floor(start).astype(int) + np.arange(int(np.ceil(step)) + 1)
        weights = np.clip(np.minimum(start + step, pixels + 1) - np.maximum(start, pixels), 0, None)
    else:
        wide = max(step, 1.0) if method == "antialiased" else 1.0
        reach = wide if method == "linear" else 2 * wide
        centre = (np.arange(new)[:, None] + 0.5) * step - 0.5
        pixels = np.floor(centre - reach).astype(int) + 1 + np.arange(int(np.ceil(2 * reach)))
        x = (pixels - centre) / wide
        if method == "linear":
            weights = np.clip(1 - np.abs(x), 0, None)
        else:
            weights = _cubic(x, -0.5 if method == "antialiased" else -0.75)
    if method == "antialiased":
        pixels = pixels % (2 * size)
        pixels = np.where(pixels < size, pixels, 2 * size - 1 - pixels)
    weights = weights / weights.sum(1, keepdims=True)
    return np.clip(pixels, 0, size - 1), weights.astype(np.float32)


def resize(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """float32 [H,W,3] -> [h,w,3] in [0,1] for size = (h, w), by the filters of `taps`."""
    for new in size:
        pixels, weights = taps(image.shape[0], new, method)
        # Each pass resizes the first axis and swaps the axes.
        image = sum(weights[:, k, None, None] * image[pixels[:, k]] for k in range(pixels.shape[1])).swapaxes(0, 1)
    return np.clip(np.ascontiguousarray(image), 0, 1)


def gaussian_kernel(size: int, variance: tuple[float, float], angle: float = 0.0) -> np.ndarray:
    """float64 [size,size] with sum 1. variance: along the direction `angle` (radians), and across it."""
    place = np.arange(size) - (size - 1) / 2
    x, y = place[None, :], place[:, None]
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    # The largest exponent is moved to 0: a narrow kernel of even size, without a pixel at its centre, would vanish.
    floor = 1e-6
    exponent = -0.5 * (along**2 / max(variance[0], floor) + across**2 / max(variance[1], floor))
    kernel = np.exp(exponent - exponent.max())
    return kernel / kernel.sum()


@lru_cache(maxsize=256)
def _fast_length(length: int) -> int:
    """The smallest 2^a 3^b 5^c from `length` on. Fourier transforms of other lengths are several times slower."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """float32 [H,W,3] * [k,k] -> [H,W,3], by FFT. The image is mirrored at the centres of its border pixels. out[i] is
    the sum of kernel[j] * image[i + k // 2 - j], so an even kernel moves the image by half a pixel."""
    k = len(kernel)
    after = k // 2
    before = k - 1 - after
    padded = np.pad(image, ((before, after), (before, after), (0, 0)), mode="reflect")
    shape = tuple(_fast_length(side) for side in padded.shape[:2])
    planes = np.ascontiguousarray(np.moveaxis(padded, -1, 0))
    spectrum = np.fft.rfft2(planes, shape) * np.fft.rfft2(kernel.astype(np.float32), shape)
    out = np.fft.irfft2(spectrum, shape)[:, k - 1 : padded.shape[0], k - 1 : padded.shape[1]]
    return np.ascontiguousarray(np.moveaxis(out, 0, -1), np.float32)


def blur(rng: np.random.Generator, image: np.ndarray, scale: int, strength: Strength) -> np.ndarray:
    """Blurs with a random Gaussian. With probability 0.5 it is anisotropic with eigenvalues U(0, 4 + scale), else
    isotropic with sigma U(0, 2 + scale/5). Both ranges are multiplied by `strength.blur_share`."""
    if rng.random() < 0.5:
        variance = strength.blur_share * (4 + scale) * rng.random(2)
        kernel = gaussian_kernel(int(rng.choice(strength.anisotropic_sizes)), tuple(variance), np.pi * rng.random())
    else:
        sigma = strength.blur_share * (2 + 0.2 * scale) * rng.random()
        kernel = gaussian_kernel(int(rng.choice(strength.isotropic_sizes)), (sigma**2, sigma**2))
    return convolve(image, kernel)


def _shift_towards_origin(kernel: np.ndarray, by: float) -> np.ndarray:
    """The kernel moved by `by` pixels towards the origin, linearly interpolated, cut at the border; its sum is 1."""
    size = len(kernel)
    where = np.minimum(np.arange(size) + by, size - 1)[:, None]
    mix = np.clip(1 - np.abs(where - np.arange(size)), 0, None)
    moved = mix @ kernel @ mix.T
    return moved / moved.sum()


def shrink(rng: np.random.Generator, image: np.ndarray, scale: int, strength: Strength) -> np.ndarray:
    """The first shrinking: either both axes by one random factor U(1, 2 scale), with a random filter; or a 25 x 25
    Gaussian of sigma U(0.1, 0.6 scale), and then every scale-th pixel. The Gaussian is shifted to the centre of
    scale x scale pixels."""
    if rng.random() < strength.random_resize:
        factor = rng.uniform(1, 2 * scale)
        size = tuple(max(int(side / factor), 1) for side in image.shape[:2])
        return resize(image, size, str(rng.choice(_RANDOM_FILTERS)))
    sigma = rng.uniform(0.1, 0.6 * scale)
    kernel = gaussian_kernel(_SHIFTED_KERNEL, (sigma**2, sigma**2))
    kernel = _shift_towards_origin(kernel, (scale - 1) / 2)
    return np.clip(convolve(image, kernel)[::scale, ::scale], 0, 1)


def add_noise(rng: np.random.Generator, image: np.ndarray, levels: tuple[int, int]) -> np.ndarray:
    """Adds Gaussian noise. sigma is a random integer of `levels`, divided by 255. With probability 0.4 channels are
    independent, with 0.4 equal, and with 0.2 they have a random covariance |sigma^2 U^T D U| with the largest sigma."""
    sigma = rng.integers(levels[0], levels[1] + 1) / 255
    which = rng.random()
    if which > 0.6:
        noise = sigma * rng.standard_normal(image.shape, np.float32)
    elif which < 0.4:
        noise = sigma * rng.standard_normal((*image.shape[:2], 1), np.float32)
    else:
        diagonal, basis = np.diag(rng.random(3)), np.linalg.svd(rng.random((3, 3)))[0]
        covariance = np.abs((levels[1] / 255) ** 2 * basis.T @ diagonal @ basis)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        noise = np.einsum("hwc,dc->hwd", rng.standard_normal(image.shape, np.float32), root.astype(np.float32))
    return np.clip(image + noise.astype(np.float32), 0, 1)


def _as_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def jpeg(rng: np.random.Generator, image: np.ndarray, qualities: tuple[int, int]) -> np.ndarray:
    """Compresses the image as JPEG of a random quality, with colours at half resolution."""
    buffer = io.BytesIO()
    Image.fromarray(_as_uint8(image)).save(
        buffer, "jpeg", quality=int(rng.integers(qualities[0], qualities[1] + 1)), subsampling="4:2:0"
    )
    return np.asarray(Image.open(buffer), np.float32) / np.float32(255)


def random_order(rng: np.random.Generator, strength: Strength) -> list[str]:
    """The stages in a random order. "finish", the resize to the exact size, comes after "shrink": if they were drawn in
    the other order, they change places."""
    stages = ["blur"] * strength.blurs + ["shrink", "finish", "noise", "jpeg"]
    order = [stages[k] for k in rng.permutation(len(stages))]
    first, second = order.index("shrink"), order.index("finish")
    if first > second:
        order[first], order[second] = order[second], order[first]
    return order


def _bsr(rng: np.random.Generator, image: np.ndarray, scale: int, strength: Strength) -> np.ndarray:
    """float32 [H,W,3] in [0,1] -> [H/scale,W/scale,3]."""
    final = (image.shape[0] // scale, image.shape[1] // scale)
    if scale == 4 and rng.random() < _HALVE_FIRST:
        method = str(rng.choice(_RANDOM_FILTERS)) if rng.random() < 0.5 else "antialiased"
        image = resize(image, (image.shape[0] // 2, image.shape[1] // 2), method)
        scale = 2
    for stage in random_order(rng, strength):
        if stage == "blur":
            image = blur(rng, image, scale, strength)
        elif stage == "shrink":
            image = shrink(rng, image, scale, strength)
        elif stage == "finish":
            image = resize(image, final, str(rng.choice(_RANDOM_FILTERS)))
        elif stage == "noise":
            image = add_noise(rng, image, strength.noise)
        elif rng.random() < _JPEG:
            image = jpeg(rng, image, strength.jpeg)
    return jpeg(rng, image, strength.jpeg)


def degrade(rng: np.random.Generator, image: np.ndarray, scale: int = 4, kind: str = "bicubic") -> np.ndarray:
    """[H,W,3] uint8 -> [H/scale,W/scale,3] uint8.

    kind: "bicubic" is Pillow's anti-aliased filter, without randomness, as for the paper's main model. "bsr" and
    "bsr_light" halve the image first (for scale 4, with probability 0.25). Then come blurs, shrinking, resizing to the
    exact size, noise, and JPEG (with probability 0.9) in a random order, and at the end always a JPEG.
    ConfigError for another kind, and if `scale` does not divide H and W.
    """
    if kind not in KINDS:
        raise ConfigError(f"degradation is {kind!r}, but must be one of {', '.join(KINDS)}")
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(f"degradations take uint8 [H,W,3], not {image.dtype} {list(image.shape)}")
    height, width = image.shape[:2]
    if scale < 1 or height % scale or width % scale:
        raise ConfigError(f"an image of {height}x{width} cannot be made {scale} times smaller: crop it to a multiple")
    if kind == "bicubic":
        return transforms.resize(image, (height // scale, width // scale), "bicubic")
    strength = FULL if kind == "bsr" else LIGHT
    return _as_uint8(_bsr(rng, image.astype(np.float32) / np.float32(255), scale, strength))
