"""The runner of evaluation's goldens: it passes on our copies, and it notices wrong, missing and unknown outputs."""

import json

import numpy as np
import pytest

from tests import run_eval_goldens
from tests.eval_goldens import judge, made_up
from tests.eval_goldens.judge import HERE

CASES = HERE / "cases"


def counts(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def copy(folder, name, meta=None, outputs=None, as_name=None):
    """A case with changed json fields and changed outputs in `folder`."""
    recorded = json.loads((CASES / f"{name}.json").read_text()) | (meta or {})
    with np.load(CASES / f"{name}.npz") as arrays:
        changed = dict(arrays) | (outputs or {})
    for key, value in changed.items():
        usual = {"shape": list(np.shape(value)), "measure": "abs", "tolerance": 1e-6}
        recorded["outputs"].setdefault(key, usual)
    (folder / f"{as_name or name}.json").write_text(json.dumps(recorded))
    np.savez(folder / f"{as_name or name}.npz", **changed)


def test_weights_are_rebuilt_as_recorded():
    for model, digests in json.loads((HERE / "manifests" / "weights_sha256.json").read_text()).items():
        path = HERE / "manifests" / f"{model}.json"
        shapes = json.loads(path.read_text()) if path.is_file() else {}
        for key in shapes.keys() & digests.keys():
            assert made_up.sha256(made_up.make_weight(model, key, shapes[key])) == digests[key]


def test_small_cases_pass(capsys):
    assert run_eval_goldens.main(["--only", "^(frechet_two_rows|kid_d64|isc_n256|prc_d64|pixels_black|to_uint8)"]) == 0
    assert counts(capsys) == "6 passed, 0 failed, 0 not supported"


@pytest.mark.slow
def test_all_cases_pass(capsys):
    assert run_eval_goldens.main([]) == 0
    assert counts(capsys).endswith(" passed, 0 failed, 0 not supported")


def test_a_wrong_output_fails(tmp_path, capsys):
    with np.load(CASES / "isc_n256.npz") as arrays:
        wrong = arrays["mean"] * 1.001
    copy(tmp_path, "isc_n256", outputs={"mean": wrong})
    copy(tmp_path, "kid_d64", outputs={"kid_std": np.float64(np.nan)})
    assert run_eval_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "isc_n256 mean 1.0e-03 rel 1e-05 FAIL" in out and "abs 5e-05 pass" in out
    assert "kid_d64 kid_std inf abs 1e-06 FAIL" in out
    assert out.endswith("0 passed, 2 failed, 0 not supported\n")


def test_what_cannot_be_compared_is_not_supported(tmp_path, capsys):
    copy(tmp_path, "kid_d64", meta={"kind": "of another world"}, as_name="unknown_kind")
    copy(tmp_path, "kid_d64", outputs={"novel": np.zeros(3)}, as_name="unknown_output")
    copy(tmp_path, "kid_d64", as_name="renamed")
    assert run_eval_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "unknown_kind not supported: no runner for a case of kind 'of another world'" in out
    assert "novel - abs 1e-06 missing" in out
    assert out.endswith("1 passed, 0 failed, 2 not supported\n")


def test_a_wrong_input_is_not_a_wrong_network(tmp_path, capsys):
    copy(tmp_path, "kid_d64", meta={"input_sha256": {"features_1": "0" * 16}})
    assert run_eval_goldens.main([str(tmp_path)]) == 1
    assert "the input features_1 is rebuilt differently" in capsys.readouterr().out


def test_measures():
    golden = np.array([1.0, 3.0])
    assert judge.difference("abs", golden + 0.5, golden) == 0.5 == judge.difference("std", golden + 0.5, golden)
    assert judge.difference("rel", golden + 0.3, golden) == pytest.approx(0.1)
    assert judge.difference("mismatch", [1.0, 4.0], golden) == 0.5
    assert judge.difference("abs", golden[:1], golden) == judge.difference("abs", golden * np.nan, golden) == np.inf
    assert judge.difference("abs", [np.inf, 1], [np.inf, 1]) == judge.difference("rel", [0.0], [0.0]) == 0


def test_no_case_at_all_is_an_error(tmp_path):
    assert run_eval_goldens.main([str(tmp_path)]) == 1
    with pytest.raises(SystemExit):
        run_eval_goldens.main([str(tmp_path / "missing")])
