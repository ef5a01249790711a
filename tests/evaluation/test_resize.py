"""Resizes against recorded rows, and against what can be said in closed form."""

import jax
import numpy as np
import pytest

from ldm_jax.evaluation import resize
from tests.eval_goldens import kinds

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 13, 9, 3), np.uint8)


@pytest.mark.parametrize("name", kinds.names("inception_resize") + kinds.names("clean_fid_resize"))
def test_goldens(name):
    assert not kinds.wrong(name)


@pytest.mark.parametrize("name", resize.RESIZES)
def test_equal_size_changes_nothing_and_flat_stays_flat(name):
    function = resize.RESIZES[name]
    np.testing.assert_allclose(function(IMAGE, (13, 9)), IMAGE, atol=1e-4)
    flat = np.full((1, 20, 30, 3), 77, np.uint8)
    for size in ((7, 11), (41, 64)):
        out = function(flat, size)
        assert out.shape == (1, *size, 3) and out.dtype == np.float32
        np.testing.assert_allclose(out, 77, atol=1e-4)


def test_tf1_positions_by_hand():
    """4 pixels to 8: every second output is a pixel, the others lie between; the last repeats the edge."""
    row = np.array([0, 10, 30, 70], np.uint8)[None, None, :, None]
    found = np.asarray(resize.tf1_bilinear(row, (1, 8)))[0, 0, :, 0]
    np.testing.assert_allclose(found, [0, 5, 10, 20, 30, 50, 70, 70])
    np.testing.assert_allclose(resize.tf1_bilinear(row, (1, 2))[0, 0, :, 0], [0, 30])  # no antialiasing


@pytest.mark.parametrize("size", [(5, 4), (13, 40), (30, 6)])
def test_antialiased_bicubic_is_pillows_before_rounding(size):
    ours = np.asarray(resize.antialiased_bicubic(IMAGE, size))
    np.testing.assert_allclose(np.clip(ours, 0, 255), resize.clean_fid(IMAGE, size), atol=1e-3)
    pale = IMAGE // 2 + 64  # so that nothing is clipped, also between Pillow's two passes
    assert np.abs(resize.antialiased_bicubic(pale, size) - resize.pillow_bicubic(pale, size)).max() < 1.6


def test_device_resizes_can_be_compiled():
    for function in resize.RESIZES.values():
        if not function.on_host:
            compiled = jax.jit(lambda x, f=function: f(x, (20, 21)))(IMAGE)
            np.testing.assert_allclose(compiled, function(IMAGE, (20, 21)), atol=1e-3)
