"""The Inception score against recorded values and closed forms."""

import numpy as np
import pytest

from ldm_jax.errors import UsageError
from ldm_jax.evaluation.inception_score import inception_score, inception_score_adm
from tests.eval_goldens import kinds


@pytest.mark.parametrize("name", kinds.names("isc"))
def test_goldens(name):
    assert not kinds.wrong(name)


def test_equal_pictures_score_1_and_sure_classes_their_number():
    same = np.tile(np.random.default_rng(0).standard_normal(9), (40, 1))
    np.testing.assert_allclose(inception_score(same), (1, 0), atol=1e-12)
    sure = 1e4 * np.eye(8)[np.arange(64) % 8]
    np.testing.assert_allclose(inception_score(sure, 8, None), (8, 0), rtol=1e-12)
    np.testing.assert_allclose(inception_score_adm(sure), 8, rtol=1e-12)


def test_parts():
    logits = 3 * np.random.default_rng(0).standard_normal((23, 6))
    alone = [inception_score(part, 1, None).mean for part in (logits[:10], logits[10:20], logits[20:])]
    np.testing.assert_allclose(inception_score_adm(logits, 10), np.mean(alone))
    order = np.random.RandomState(7).permutation(23)
    assert inception_score(logits, 4, 7) == inception_score(logits[order], 4, None)


def test_what_is_refused():
    with pytest.raises(UsageError, match="3 images do not make 10 parts"):
        inception_score(np.zeros((3, 5)))
    with pytest.raises(UsageError, match="no images"):
        inception_score_adm(np.zeros((0, 5)))
