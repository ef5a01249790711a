"""Pictures to look at."""

import numpy as np

from ldm_jax.evaluation import strips


class Coloured(list):
    """Pictures of one grey value each."""

    def part(self, first, last):
        return [np.full((3, 3, 3), value, np.uint8) for value in self[first:last]]


def values(sheet, columns):
    """The grey values of a grid of pictures of 3 px, [rows, columns]."""
    return sheet[3::5, 3::5, 0][:, :columns]


def test_neighbours():
    ours, theirs = Coloured([0, 100, 50]), Coloured([104, 2, 60, 200, 250, 90])
    features = [np.array(some, np.float32)[:, None] for some in (ours, theirs)]
    shown = strips.neighbours(ours, theirs, *features)
    np.testing.assert_array_equal(values(shown["nearest"], 3), [[0, 2, 60], [100, 104, 90], [50, 60, 90]])
    assert values(shown["most_similar"], 1).ravel().tolist() == [0, 100, 50]
    assert values(shown["least_similar"], 1).ravel().tolist() == [50, 100, 0]


def test_neighbours_of_some_spread_evenly():
    ours, theirs = Coloured([0, 100, 50, 30]), Coloured([104, 2, 60, 200])
    features = [np.array(some, np.float32)[:, None] for some in (ours, theirs)]
    shown = strips.neighbours(ours, theirs, *features, most=2)
    np.testing.assert_array_equal(values(shown["nearest"], 3), [[0, 60, 104], [50, 60, 104]])


def test_pictures_of_other_sizes_are_resized():
    class Mixed(Coloured):
        def part(self, first, last):
            return [np.full((3 + i, 3, 3), i, np.uint8) for i in range(first, last)]

    assert strips.first(Mixed([0, 1, 2, 3])).shape == (12, 12, 3)
