"""evaluate.py beside torch-fidelity, on the same folders of PNG with the same made-up Inception weights."""

import numpy as np
import pytest

from benchmarks import evaluation


@pytest.mark.slow
def test_the_numbers_of_torch_fidelity(tmp_path):
    pytest.importorskip("torch_fidelity", reason="pip install -r requirements-bench.txt")
    evaluation.save_pictures(tmp_path / "samples", 48, 64, stream=0)
    evaluation.save_pictures(tmp_path / "reference", 40, 64, stream=1)
    evaluation.save_weights(tmp_path, torch=True)
    ours, theirs = (evaluation.RUN[side](tmp_path, 16) for side in evaluation.SIDES)
    for name in ("FID", "KID", "IS"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    for name in ("precision", "recall"):  # torch-fidelity's are of float32
        assert np.float32(ours[name]) == np.float32(theirs[name]), name
    assert ours["recall"] > 0
