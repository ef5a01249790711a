"""What is computed once: it goes on after an interruption, and is not computed again."""

import numpy as np
import pytest

from ldm_jax.evaluation import kept
from tests.evaluation.test_features import extractor


class Counted:
    """Pictures that count how often they are made; `fails_at`: the number of the picture that raises."""

    name, settings = "counted", {}

    def __init__(self, number=10, identity="a", fails_at=None):
        self.number, self.identity, self.fails_at, self.made = number, identity, fails_at, []

    def __len__(self):
        return self.number

    def part(self, first, last):
        if self.fails_at is not None and last > self.fails_at:
            raise KeyboardInterrupt
        self.made += range(first, last)
        return [np.full((9, 9, 3), i, np.uint8) for i in range(first, last)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(kept, "PART", 4)


def quiet(text):
    pass


def features_of(pictures, folder):
    return kept.features_of(pictures, extractor(batch=4), ("mean",), folder, quiet)["mean"]


def test_an_interrupted_set_goes_on(tmp_path):
    whole = features_of(Counted(), tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        features_of(Counted(fails_at=8), tmp_path)
    rest = Counted()
    np.testing.assert_array_equal(features_of(rest, tmp_path), whole)
    assert rest.made == [8, 9]
    there = Counted()
    np.testing.assert_array_equal(features_of(there, tmp_path), whole)
    assert there.made == []


def test_another_set_is_another_and_damage_is_repaired(tmp_path):
    whole = features_of(Counted(), tmp_path)
    (first, *_) = sorted(tmp_path.rglob("*.npz"))
    first.write_bytes(first.read_bytes()[:50])
    again = Counted()
    np.testing.assert_array_equal(features_of(again, tmp_path), whole)
    assert again.made == [0, 1, 2, 3]
    other = Counted(identity="b")
    features_of(other, tmp_path)
    assert len(other.made) == 10


def test_pictures_are_made_once(tmp_path):
    made = Counted()
    pictures = kept.KeptPictures(made, tmp_path, quiet)
    assert len(pictures) == 10 and pictures.name == "counted"
    for first, last in ((0, 1), (3, 6), (9, 10), (0, 10)):
        found = pictures.part(first, last)
        assert [int(image[0, 0, 0]) for image in found] == list(range(first, last))
    assert sorted(made.made) == list(range(10))
    again = Counted(fails_at=0)
    assert len(kept.KeptPictures(again, tmp_path, quiet).part(0, 10)) == 10
