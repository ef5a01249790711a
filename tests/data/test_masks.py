import numpy as np
import pytest

from ldm_jax.data import masks


def generator(k=0):
    return np.random.default_rng(k)


@pytest.mark.parametrize("setting", masks.SETTINGS)
@pytest.mark.parametrize("size", [(64, 64), (48, 100), (16, 16)])
def test_masks_are_zero_and_one_and_depend_on_the_generator_alone(setting, size):
    for k in range(5):
        mask = masks.make_mask(generator(k), *size, setting)
        assert mask.shape == size and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        assert mask.any()
        assert np.array_equal(mask, masks.make_mask(generator(k), *size, setting))
    assert not np.array_equal(mask, masks.make_mask(generator(k + 1), *size, setting))


def test_coverage():
    """Means of 400 masks stand within about 3 standard errors of those of 4000."""
    means = {"train_256": 0.37, "thick_256": 0.28, "medium_256": 0.24, "thin_256": 0.27}
    for setting, mean in means.items():
        covered = np.array([masks.make_mask(generator(k), 64, 64, setting).mean() for k in range(400)])
        assert abs(covered.mean() - mean) < 0.035, setting
        assert covered.std() > 0.08  # from small holes to large ones
        if setting != "train_256":
            assert covered.max() <= 0.5
        else:
            assert 0.2 < (covered > 0.5).mean() < 0.4


def test_holes_keep_their_share_at_another_size():
    for setting in ("train_256", "medium_512"):
        shares = [
            np.mean([masks.make_mask(generator(k), side, side, setting).mean() for k in range(300)])
            for side in (64, 192)
        ]
        assert abs(shares[0] - shares[1]) < 0.03, setting


def rectangles_only(mask):
    """Whether the mask is one box: as large as the box around it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)


def test_training_draws_boxes_half_of_the_time():
    # One of four counts of boxes is 1, and then the mask is a plain rectangle; strokes hardly ever are.
    single = np.mean([rectangles_only(masks.make_mask(generator(k), 256, 256)) for k in range(800)])
    assert 0.09 < single < 0.18


def test_boxes_keep_their_sides_and_margin():
    boxes = masks.SETTINGS["train_256"].boxes
    once = masks.Boxes((1, 1), boxes.side, boxes.margin)
    sides = []
    for k in range(400):
        mask = masks.draw_boxes(generator(k), 256, 256, once)
        assert not mask[:10].any() and not mask[-10:].any() and not mask[:, :10].any() and not mask[:, -10:].any()
        sides += [mask.any(0).sum(), mask.any(1).sum()]
        assert mask.sum() == sides[-1] * sides[-2]
    assert 30 <= min(sides) <= 32 and 148 <= max(sides) <= 150
    assert not masks.draw_boxes(generator(), 128, 128, once, scale=0.5)[:5].any()


def test_one_straight_stroke_is_as_thick_as_its_width():
    thin = masks.Strokes((1, 1), 10, 5)
    for k in range(50):
        mask = masks.draw_strokes(generator(k), 400, 400, thin)
        # 1 to 5 segments of length 10 and width 5, with round ends.
        assert 15 <= mask.sum() <= 5 * 10 * 5 + 6 * 25
        assert max(mask.any(0).sum(), mask.any(1).sum()) <= 5 * 10 + 6


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="'thick', but must be one of train_256, thick_256"):
        masks.make_mask(generator(), 64, 64, "thick")
    with pytest.raises(ValueError, match="not 64x8"):
        masks.make_mask(generator(), 64, 8)
