"""scripts/check_names.py: which names are drawn, and when a sample counts."""

import numpy as np
import pytest

from scripts import check_names


def test_each_name_is_drawn_once_whatever_the_order_of_the_pictures():
    captions = ["cat", "dog", "cat", "red heart", "rocket"]
    drawn = [captions[i] for i in check_names.chosen(captions, 3)]
    assert len(set(drawn)) == 3
    assert [captions[::-1][i] for i in check_names.chosen(captions[::-1], 3)] == drawn
    assert sorted(captions[i] for i in check_names.chosen(captions, 9)) == ["cat", "dog", "red heart", "rocket"]
    assert captions.index("cat") in check_names.chosen(captions, 9)  # its first picture


def test_a_sample_counts_when_its_name_is_among_the_nearest():
    """Training pictures at 0, 1, 2, 10; samples at 0.1 and 9."""
    reference, captions = np.array([[0.0], [1.0], [2.0], [10.0]]), ["cat", "dog", "cat", "star"]
    found = np.array([[0.1], [9.0]])
    assert check_names.share(found, reference, captions, [1, 3], nearest=1) == 0.5  # cat is not dog, star is star
    assert check_names.share(found, reference, captions, [1, 3], nearest=2) == 1.0
    assert check_names.share(found, reference, captions, [2, 0], nearest=1) == 0.5  # of two cats each counts


def test_the_first_caption_of_each_picture_is_its_name():
    texts = ["cat", ("red heart", "heart")]
    source = type("Source", (), {"annotations": lambda self, i: {"text": texts[i]}, "__len__": lambda self: 2})()
    assert check_names.captions_of(source) == ["cat", "red heart"]


def test_mistakes_are_named(capsys):
    with pytest.raises(SystemExit):
        check_names.parse(["runs/x", "--nearest=0"])
    assert "--nearest=0 must be 1 at least" in capsys.readouterr().err
