"""The rules from numbers to uint8."""

import numpy as np

from ldm_jax import images
from ldm_jax.evaluation import rounding
from tests.eval_goldens import kinds


def test_goldens():
    assert not kinds.wrong("to_uint8")


def test_ends_halves_and_what_lies_beyond():
    beyond = np.array([-3, -1, 1, 3], np.float32)
    for rule in rounding.ROUNDINGS.values():
        assert rule(beyond).tolist() == [0, 0, 255, 255]
    half = np.array([2 * 100.5 / 255 - 1, 2 * 100.75 / 255 - 1], np.float32)
    assert rounding.guided_diffusion(half).tolist() == rounding.latent_diffusion(half).tolist() == [100, 100]
    assert rounding.rounded(half).tolist()[1] == 101


def test_what_was_read_comes_back_when_it_is_rounded():
    every = np.arange(256, dtype=np.uint8)
    assert (rounding.rounded(images.to_float(every)) == every).all()
    assert (rounding.rounded(images.to_float(every)) == images.to_uint8(images.to_float(every))).all()
