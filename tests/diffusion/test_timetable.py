import numpy as np
import pytest

from ldm_jax.diffusion.schedule import KINDS, PURE_NOISE, make_schedule
from ldm_jax.diffusion.timetable import Timetable, make_timetable, pad
from tests.golden_kinds import judge
from tests.golden_tools import load

FREE = ["even", "trailing", "quadratic", "log_snr", "karras"]  # spacings that take any number of steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", FREE)
def test_every_number_of_steps_gives_that_number(spacing, kind):
    check_all_counts(make_schedule(kind), spacing)


@pytest.mark.parametrize("spacing", FREE)
def test_every_number_of_steps_from_pure_noise(spacing):
    schedule = make_schedule(prediction="v", zero_terminal_snr=True)
    check_all_counts(schedule, spacing)
    assert make_timetable(schedule, 10, spacing).alpha_bar[0] == PURE_NOISE


def check_all_counts(schedule, spacing):
    for steps in range(1, 1001):
        timetable = make_timetable(schedule, steps, spacing)
        assert len(timetable.t) == steps
        assert timetable.t[0] == 999 and timetable.t[-1] >= 0
        assert (np.diff(timetable.t) < 0).all()
        assert timetable.alpha_bar_prev[-1] == 1
        np.testing.assert_array_equal(timetable.alpha_bar, schedule.alpha_bar[timetable.t])
        np.testing.assert_array_equal(timetable.alpha_bar_prev[:-1], timetable.alpha_bar[1:])


def test_even_spacing_has_both_ends():
    assert make_timetable(make_schedule(), 5).t.tolist() == [999, 750, 500, 250, 0]


def test_trailing_spacing_is_that_of_lin_et_al():
    assert make_timetable(make_schedule(), 5, "trailing").t.tolist() == [999, 799, 599, 399, 199]


def test_log_snr_spacing_is_even_in_log_snr():
    alpha_bar = make_timetable(make_schedule(), 10, "log_snr").alpha_bar
    stride = np.diff(np.log(alpha_bar / (1 - alpha_bar)))
    # whole training steps are coarse at the clean end: log(snr) differs by 0.7 between t = 0 and 1
    np.testing.assert_allclose(stride, stride.mean(), rtol=0.25)


def test_quadratic_spacing_is_even_in_the_root():
    t = make_timetable(make_schedule(), 10, "quadratic").t
    assert t[[0, -1]].tolist() == [999, 0]
    np.testing.assert_allclose(np.diff(np.sqrt(t[:-2])), -np.sqrt(999) / 9, atol=0.05)  # whole steps


def test_karras_spacing_is_that_of_karras_et_al():
    """Equation 5 of the paper, up to whole training steps; the levels are those of the schedule."""
    schedule = make_schedule()
    sigma = np.sqrt(1 / schedule.alpha_bar - 1)
    wanted = [(sigma[-1] ** (1 / 7) + i / 9 * (sigma[0] ** (1 / 7) - sigma[-1] ** (1 / 7))) ** 7 for i in range(10)]
    t = make_timetable(schedule, 10, "karras").t
    nearest = [int(np.abs(np.log(sigma) - np.log(w)).argmin()) for w in wanted]
    assert np.abs(t - nearest).max() <= 1


def test_original_spacings_match_the_original():
    results = judge(load("ddim_params_0.0015_0.0195"))
    assert len(results) == 125 and all(result.passed for result in results)
    # float32 alphas in the original: 1 - alpha cancels at the clean end
    assert max(result.difference for result in results) < 5e-5
    assert not any(result.difference for result in results if result.output.endswith("timesteps"))


def test_original_spacing_counts():
    schedule = make_schedule()
    assert make_timetable(schedule, 50, "original").t[[0, -1]].tolist() == [981, 1]
    assert len(make_timetable(schedule, 400, "original").t) == 500
    with pytest.raises(ValueError, match=r"300 steps .* nearest usable: 250 and 334;"):
        make_timetable(schedule, 300, "original")
    with pytest.raises(ValueError, match=r"training step 1000.* usable: 500;"):
        make_timetable(schedule, 1000, "original")


def test_pad_adds_skipped_entries_at_the_end():
    timetable = make_timetable(make_schedule(), 3)
    padded = pad(timetable, 5)
    assert padded.t.tolist() == [999, 500, 0, -1, -1]
    for before, after in zip(timetable, Timetable(*(x[:3] for x in padded))):
        np.testing.assert_array_equal(before, after)
    with pytest.raises(ValueError, match="cannot pad 3 steps to 2"):
        pad(timetable, 2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"1\.\.1000, got 1001"):
        make_timetable(make_schedule(), 1001)
    with pytest.raises(ValueError, match=r"1\.\.1000, got 0"):
        make_timetable(make_schedule(), 0)
    with pytest.raises(ValueError, match="'uniform' is not one of even"):
        make_timetable(make_schedule(), 10, "uniform")


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
@pytest.mark.parametrize("steps", [10, 15, 25, 50])
@pytest.mark.parametrize(
    "ends_in_noise", [("scaled_linear", dict(prediction="v", zero_terminal_snr=True)), ("cosine", {})]
)
def test_models_of_pure_noise_spend_their_steps_on_noise_levels_that_matter(spacing, steps, ends_in_noise):
    """sigma of the last step is 20,000 or stands for infinity; the noisiest level of the paper's schedule is 84."""
    kind, options = ends_in_noise
    schedule = make_schedule(kind, **options)
    timetable = make_timetable(schedule, steps, spacing)
    sigma = np.sqrt((1 - timetable.alpha_bar) / timetable.alpha_bar)
    assert timetable.t[0] == schedule.timesteps - 1 and (sigma > 110).sum() == 1
    ordinary = make_timetable(make_schedule("scaled_linear"), steps, spacing)
    assert np.median(sigma) < 2 * np.median(np.sqrt((1 - ordinary.alpha_bar) / ordinary.alpha_bar))
