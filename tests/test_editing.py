"""A tiny latent diffusion model in patches, inverted, and guided by a picture. Its UNet is two convolutions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import editing, generate
from ldm_jax.conditions.base import Cond
from ldm_jax.conditions.inpaint import Inpainting
from ldm_jax.conditions.text import TextConditioner
from ldm_jax.data.layout import LayoutCoder
from ldm_jax.diffusion import patches, starts
from ldm_jax.diffusion.samplers import ddim, start_noise
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.keys import sample_keys
from ldm_jax.ldm import LDM
from ldm_jax.models.autoencoder import AutoencoderKL
from ldm_jax.models.lpips import LPIPS
from tests.fast import compiled

SCHEDULE = make_schedule()
TIMETABLE = make_timetable(SCHEDULE, 20)
F = 4
IMAGE = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)


class Net(nn.Module):
    """A stand-in for the UNet that looks at single pixels: the exact eps of standard normal latents, and more."""

    @nn.compact
    def __call__(self, z, t, context=None, *, train=False):
        a = jnp.asarray(SCHEDULE.alpha_bar, jnp.float32)[t][:, None, None, None]
        h = nn.Dense(8)(z) + nn.Dense(8)(t[:, None] / 1000.0)[:, None, None]
        if context is not None:
            h += nn.Dense(8)(context.mean(1))[:, None, None]
        return jnp.sqrt(1 - a) * z[..., :3] + 0.1 * nn.Dense(3)(nn.tanh(h))


class Stage(nn.Module):
    """A stand-in for the first stage, f = 4: means of 4x4 pixels and back, with a nonlinear 3x3 convolution."""

    def setup(self):
        self.conv = nn.Conv(3, (3, 3))

    def latents(self, image, keys=None):
        return nn.avg_pool(image, (F, F), (F, F))

    def decode(self, z):
        image = jnp.repeat(jnp.repeat(z, F, axis=1), F, axis=2)
        return image + 0.5 * nn.tanh(self.conv(image))

    def __call__(self, image):
        return self.decode(self.latents(image))


AUTOENCODER = AutoencoderKL(32, (1, 1, 1), 1, (), "none", resolution=32)


def make(first_stage, context=False, **fields):
    """(LDM, params, frozen)."""
    ldm = LDM(first_stage, Net(), SCHEDULE, **fields)
    frozen = {"first_stage": run(first_stage.init, jax.random.key(0), IMAGE), "latent_scale": jnp.float32(2.0)}
    channels = 3 + 4 * ("conditioner" in fields)
    tokens = jnp.ones((2, 5, 7)) if context else None
    unet = ldm.unet.init(jax.random.key(1), jnp.ones((2, 8, 8, channels)), jnp.zeros(2, jnp.int32), tokens)
    return ldm, {"unet": unet["params"], "conditioner": {}}, frozen


def run(fn, *args):
    return compiled(fn, *args)(*args)


@pytest.fixture(scope="module")
def tiny():
    return make(Stage())


def in_patches(ldm, patch, stride):
    return editing.InPatches(ldm, (patch, patch), (stride, stride), F)


@pytest.fixture(scope="module")
def autoencoder():
    return make(AUTOENCODER)


def test_one_patch_that_covers_the_image_is_the_whole_result(autoencoder):
    ldm, params, frozen = autoencoder
    for patch in (8, 32):
        other = in_patches(ldm, patch, 4)
        z, t = run(ldm.encode, frozen, IMAGE), jnp.array([3, 700])
        np.testing.assert_array_equal(run(other.encode, frozen, IMAGE), z)
        np.testing.assert_array_equal(run(other.decode, frozen, z), run(ldm.decode, frozen, z))
        np.testing.assert_array_equal(other.predict(params, z, t, Cond()), ldm.predict(params, z, t, Cond()))


def test_patches_carry_their_part_of_the_spatial_condition_and_the_whole_context():
    """A network that looks at single pixels does not notice that it sees patches."""
    ldm, params, _ = make(Stage(), context=True, conditioner=Inpainting())
    other = in_patches(ldm, 4, 2)
    z, concat = jax.random.normal(jax.random.key(2), (2, 2, 10, 8, 4))
    cond = Cond(jax.random.normal(jax.random.key(3), (2, 5, 7)), concat)
    z, t = z[..., :3], jnp.array([3, 700])
    null = jax.tree.map(jnp.zeros_like, cond)
    whole = run(generate.denoiser(ldm, params, cond, null, 3.0), z, t)
    np.testing.assert_allclose(run(generate.denoiser(other, params, cond, null, 3.0), z, t), whole, atol=1e-5)
    without = run(generate.denoiser(other, params, cond), z, t)
    assert np.abs(without - whole).max() > 0.05


def test_layouts_in_patches_have_their_own_crop_tokens():
    """Each patch is denoised as the whole model does it with that patch's crop tokens; the null is left as it is."""
    coder = LayoutCoder(9, max_objects=2, vocabulary=100, flags=())
    null = tuple(coder.encode([]).tolist())
    ldm, params, frozen = make(Stage(), context=True, conditioner=TextConditioner(100, 8, 7, 1, null_tokens=null))
    net = Net().init(jax.random.key(1), jnp.ones((2, 8, 8, 3)), jnp.zeros(2, jnp.int32), jnp.ones((2, 8, 7)))["params"]
    things = [{"box": [0.1, 0.2, 0.6, 0.9], "class": 4}, {"box": [0.5, 0.5, 1.0, 1.0], "class": 7}]
    tokens = jnp.asarray([coder.encode(things), null])
    conditioner = run(ldm.conditioner.init, jax.random.key(5), {"tokens": tokens}, None)["params"]
    params = {"unet": net, "conditioner": jax.tree.map(lambda x: 5 * x, conditioner)}
    boxes = [tuple(box) for box in patches.boxes((4, 8), (4, 4), (4, 4))]
    assert boxes == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    crops = jnp.asarray([[coder.corners(box) for box in boxes]] * 2)
    z, t = jax.random.normal(jax.random.key(2), (2, 4, 8, 3)), jnp.array([3, 700])
    other = in_patches(ldm, 4, 4)

    def predict(ldm, z, batch):
        return run(lambda z, batch: ldm.predict(params, z, t, ldm.condition(params, frozen, batch)), z, batch)

    made = predict(other, z, {"tokens": tokens, "crop_tokens": crops})
    for k, half in enumerate(jnp.split(z, 2, axis=2)):
        said = jnp.asarray([[*tokens[0, :-2].tolist(), *crops[0, k].tolist()], null])
        np.testing.assert_allclose(made[:, :, 4 * k : 4 * k + 4], predict(ldm, half, {"tokens": said}), atol=1e-5)
    plain = predict(other, z, {"tokens": tokens})
    assert np.abs(plain - made)[0].max() > 1e-3
    np.testing.assert_allclose(plain[1], made[1], atol=1e-5)


def test_the_condition_is_encoded_in_patches(tiny):
    ldm = dataclasses.replace(tiny[0], conditioner=Inpainting())
    batch = {"masked_image": IMAGE, "mask": jnp.ones((2, 32, 32, 1))}
    other = in_patches(ldm, 4, 2)
    cond = run(other.condition, tiny[1], tiny[2], batch)
    assert cond.concat.shape == (2, 8, 8, 4)
    np.testing.assert_allclose(cond.concat[..., :3], run(other.encode, tiny[2], IMAGE), atol=1e-5)


def test_seams_are_invisible(tiny):
    """A smooth latent in patches of 16 that overlap by 8 or not at all: the error, and the steps that are added at the
    borders of patches, in units of the smooth picture's own steps. The decoder sees zeros beyond a patch; at its border
    a patch counts 0.01 and the one over it 0.5."""
    ldm, _, frozen = tiny
    y, x = np.meshgrid(*[np.arange(48) * 2 * np.pi / 40] * 2, indexing="ij")
    z = jnp.asarray(2 + np.stack([np.sin(y), np.cos(x), np.sin(x + y)], -1)[None], jnp.float32)
    whole = np.asarray(run(ldm.decode, frozen, z))
    at_seam = np.isin(np.arange(1, 48 * F), np.arange(8, 48, 8) * F)

    def measure(image):
        added = np.diff(np.asarray(image) - whole, axis=2)
        error = np.sqrt(np.mean((image - whole) ** 2)) / whole.std()
        return error, np.sqrt(np.mean(added[:, :, at_seam] ** 2)) / np.diff(whole, axis=2).std()

    blended, side_by_side = (measure(run(in_patches(ldm, 16, s).decode, frozen, z)) for s in (8, 16))
    print(blended, side_by_side)
    assert blended[0] < 0.02 and blended[1] < 1
    assert side_by_side[0] > 0.05 and side_by_side[1] > 5


def test_memory_is_that_of_a_patch(autoencoder):
    """1024x1024 pixels in patches of 128: decoding, and the gradient through it, in units of the image."""
    ldm, _, frozen = autoencoder
    z = jax.ShapeDtypeStruct((1, 1024 // F, 1024 // F, 3), jnp.float32)
    image = 4 * 3 * 1024 * 1024

    def used(ldm, gradient=False):
        def fn(frozen, z):
            if not gradient:
                return ldm.decode(frozen, z)
            return jax.grad(lambda z: jnp.sum(jnp.square(ldm.decode(frozen, z))))(z)

        return compiled(fn, frozen, z).memory_analysis().temp_size_in_bytes / image

    pieces = in_patches(ldm, 128 // F, 64 // F)
    whole, pieces, backward = used(ldm), used(pieces), used(pieces, gradient=True)
    print(whole, pieces, backward)
    assert whole > 20 and pieces < 3 and backward < 8


def sample_latents(ldm, params, frozen, keys, shape, timetable, z_T=None, log_p=None):
    """z [B,*shape] by ddim, to be compiled."""
    cond, _ = generate.conditions(ldm, params, frozen, {}, None)
    denoise = generate.denoiser(ldm, params, cond, log_p=log_p)
    return ddim(denoise, start_noise(keys, shape) if z_T is None else z_T, timetable, keys)


def test_inversion_and_sampling_give_the_latent_back(tiny):
    ldm, params, frozen = tiny

    def there_and_back(params, frozen, image):
        z_T = editing.invert_image(ldm, params, frozen, {}, image, TIMETABLE, 10)
        keys = sample_keys(jax.random.key(0), 2)
        again = sample_latents(ldm, params, frozen, keys, z_T.shape[1:], TIMETABLE, z_T=z_T)
        return ldm.encode(frozen, image), z_T, again

    z, z_T, again = run(there_and_back, params, frozen, IMAGE)
    np.testing.assert_allclose(again, z, atol=1e-3 * float(z.std()))
    assert np.abs(z_T - z).max() > 0.1


def sampled_with(ldm, params, frozen, wanted, scale, distance=editing.half_square):
    """Distances [B] of two samples, made smaller, to `wanted`, and the samples' latents."""

    def fn(params, frozen, wanted, scale):
        keys = sample_keys(jax.random.key(0), 2)
        log_p = editing.matches(ldm, frozen, wanted, scale, distance)
        z = sample_latents(ldm, params, frozen, keys, (8, 8, 3), TIMETABLE, log_p=log_p)
        return -editing.matches(ldm, frozen, wanted, 1.0, distance)(z), z

    program = compiled(fn, params, frozen, wanted, scale[0])
    return [program(params, frozen, wanted, s) for s in scale]


def test_a_picture_guides(tiny):
    """More of the scale brings the image nearer to the picture; scale 0 changes nothing; patches may be guided, too."""
    ldm, params, frozen = tiny
    wanted = jnp.stack([jnp.full((8, 8, 3), v) for v in (0.5, -0.5)])
    (far, free), (nearer, _), (near, _) = sampled_with(ldm, params, frozen, wanted, jnp.array([0.0, 0.3, 1.0]))
    print(far, nearer, near)
    assert np.all(near < nearer) and np.all(nearer < far)
    shape = (8, 8, 3)
    keys = sample_keys(jax.random.key(0), 2)
    plain = run(lambda p, f: sample_latents(ldm, p, f, keys, shape, TIMETABLE), params, frozen)
    np.testing.assert_allclose(free, plain, atol=1e-4)
    (far, _), (near, _) = sampled_with(in_patches(ldm, 4, 2), params, frozen, wanted, jnp.array([0.0, 1.0]))
    assert np.all(near < far)


def test_any_distance_guides(tiny):
    """A step along the gradient of `matches` with LPIPS brings the picture nearer by LPIPS."""
    ldm, _, frozen = tiny
    net, z = LPIPS("alex"), run(ldm.encode, frozen, IMAGE)
    weights = run(net.init, jax.random.key(4), IMAGE, IMAGE)

    def step(frozen, weights, z):
        log_p = editing.matches(ldm, frozen, IMAGE, 3.0, editing.perceptual(net, weights["params"]))
        before, pull = jax.vjp(log_p, z)
        (slope,) = pull(jnp.ones(2))
        return before, log_p(z + 0.01 * slope / jnp.std(slope)), net.apply(weights, ldm.decode(frozen, z), IMAGE)

    before, after, distance = run(step, frozen, weights, z)
    assert np.all(after > before)
    np.testing.assert_allclose(before, -3 * distance * IMAGE[0].size / 2, rtol=1e-4)


def test_start_at_a_strength(tiny):
    """A small strength ends nearer to the picture's latent than a large one."""
    ldm, params, frozen = tiny
    keys, z = sample_keys(jax.random.key(0), 2), run(ldm.encode, frozen, IMAGE)
    away = []
    for strength in (0.2, 1.0):
        short = starts.shortened(make_timetable(SCHEDULE, 10), strength)

        def fn(params, frozen, z, short):
            z_t = starts.noised(z, keys, short)
            return sample_latents(ldm, params, frozen, keys, z.shape[1:], short, z_T=z_t)

        away.append(float(jnp.abs(run(fn, params, frozen, z, short) - z).mean()))
    assert away[0] < 0.5 * away[1], away
