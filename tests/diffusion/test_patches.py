"""Overlapping patches: the original's weights (golden), blending, resolutions, memory, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import patches
from ldm_jax.models.layers import average_down, nearest_up
from tests.golden_kinds import judge
from tests.golden_tools import load

X = jax.random.normal(jax.random.key(0), (2, 24, 20, 3))


def test_weights_and_sums_are_the_originals():
    results = judge(load("fold_unfold"))
    assert len(results) == 13 and all(result.passed for result in results), results


@pytest.mark.parametrize("stride", [(4, 4), (8, 8), (5, 3)])
def test_nothing_done_to_the_patches_gives_the_image(stride):
    """Also where the stride does not lead to the border: 24 - 8 is no multiple of 5."""
    np.testing.assert_allclose(patches.patchwise(lambda x: x, X, (8, 8), stride), X, atol=1e-6)
    where = patches.corners(X.shape[1:3], (8, 8), stride)
    cut = patches.unfold(X, (8, 8), stride)
    assert cut.shape == (where[..., 0].size, 2, 8, 8, 3)
    w = patches.weights((8, 8), where.shape[:2], tie_clip=patches.CLIP)
    np.testing.assert_allclose(patches.fold(cut, X.shape[1:3], stride, w), X, atol=1e-6)


def test_one_at_a_time_equals_all_at_once():
    def fn(x):  # depends on the place in the patch, so that the weights count
        return jnp.sin(x) * jnp.arange(8.0)[:, None, None]

    where = patches.corners(X.shape[1:3], (8, 8), (4, 4))
    w = patches.weights((8, 8), where.shape[:2], (0.1, 0.3), (0.2, 0.4))
    together = patches.fold(jax.vmap(fn)(patches.unfold(X, (8, 8), (4, 4))), X.shape[1:3], (4, 4), w)
    one_by_one = jax.jit(lambda x: patches.patchwise(fn, x, (8, 8), (4, 4), clip=(0.1, 0.3), tie_clip=(0.2, 0.4)))(X)
    np.testing.assert_allclose(one_by_one, together, atol=1e-5)


def test_blending_is_the_weighted_mean():
    """Two patches of 4 columns that share 2: each counts by its distance to its own border."""
    calls = iter((1.0, 0.0))
    cut = jnp.stack([jnp.full((1, 1, 4, 1), next(calls)) for _ in range(2)])
    w = np.broadcast_to(np.array([0.1, 0.3, 0.3, 0.1]), (2, 1, 4))
    blended = patches.fold(cut, (1, 6), (1, 2), w)[0, 0, :, 0]
    np.testing.assert_allclose(blended, [1, 1, 0.75, 0.25, 0, 0], rtol=1e-6)


def test_decoders_and_encoders_change_the_resolution():
    up = patches.patchwise(nearest_up, X, (8, 8), (4, 4), scale=2)
    np.testing.assert_allclose(up, nearest_up(X), atol=1e-6)
    down = patches.patchwise(average_down, X, (8, 8), (4, 4), scale=0.5)
    np.testing.assert_allclose(down, average_down(X), atol=1e-6)


def test_a_condition_is_cut_in_the_same_places():
    def denoise(pair):
        z, condition = pair
        return jnp.concatenate([z, condition], axis=-1)[..., :4]

    both = patches.patchwise(denoise, (X, X[..., :1]), (8, 8), (4, 4))
    np.testing.assert_allclose(both, denoise((X, X[..., :1])), atol=1e-6)


def test_a_patch_larger_than_the_image_is_the_image():
    np.testing.assert_allclose(patches.patchwise(lambda x: x, X, (64, 64), (32, 32)), X, atol=1e-6)


def test_memory_is_the_image_and_one_patch():
    """Of 81 patches of 1/25 of the image, only one is held with its 64 channels."""
    x = jax.ShapeDtypeStruct((1, 320, 320, 3), jnp.float32)

    def run(x):
        return patches.patchwise(lambda p: jnp.tanh(jnp.tile(p, 20)).sum(-1, keepdims=True), x, (64, 64), (32, 32))

    used = jax.jit(run).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert used < 6 * 4 * 320 * 320


def test_every_patch_is_told_its_own():
    """Each patch gets its row, and `boxes` are the parts of the image that they are; so is the whole image in one."""
    boxes = patches.boxes(X.shape[1:3], (8, 10), (5, 10))
    assert boxes[0].tolist() == [0, 0, 0.5, 8 / 24] and boxes[1].tolist() == [0.5, 0, 1, 8 / 24]
    y, x = jnp.meshgrid((jnp.arange(24) + 0.5) / 24, (jnp.arange(20) + 0.5) / 20, indexing="ij")
    places = jnp.stack([x, y], -1)[None]

    def left(place, box):
        return place - box[None, None, None, :2]

    told = patches.patchwise(lambda p, box: left(p, box) + box[:2], places, (8, 10), (5, 10), each=jnp.array(boxes))
    np.testing.assert_allclose(told, places, atol=1e-6)
    inside = patches.patchwise(left, places, (8, 10), (5, 10), each=jnp.array(boxes))
    assert inside.min() > 0 and inside[..., 0].max() < 0.5 and inside[..., 1].max() < 8 / 24
    whole = jnp.array(patches.boxes((24, 20), (99, 99), (50, 50)))
    whole = patches.patchwise(left, places, (99, 99), (50, 50), each=whole)
    np.testing.assert_allclose(whole, places, atol=1e-6)
    with pytest.raises(ValueError, match="10 patches, but `each` has 3 rows"):
        patches.patchwise(left, places, (8, 10), (5, 10), each=jnp.array(boxes[:3]))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"stride \(9, 4\): needs 0 < stride <= patch"):
        patches.corners((24, 20), (8, 8), (9, 4))
    with pytest.raises(ValueError, match="times 1/4 are not whole numbers"):
        patches.patchwise(lambda x: x[:, ::4, ::4], X, (8, 8), (2, 2), scale=0.25)
    with pytest.raises(ValueError, match=r"came out as \(8, 8\), not times scale 2"):
        patches.patchwise(lambda x: x, X, (8, 8), (4, 4), scale=2)
    with pytest.raises(ValueError, match="images of different sizes"):
        patches.patchwise(lambda x: x[0], (X, X[:, :8]), (8, 8), (4, 4))
