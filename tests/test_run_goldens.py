"""The golden runner: it passes on our copies, and it notices wrong, missing and unknown outputs."""

import json

import numpy as np
import pytest

from tests import run_goldens
from tests.golden_tools import GOLDEN

# A case of every kind that costs seconds at most; most others have tests of their own beside the code.
QUICK = (
    "cond_class_cin256-v2|cond_spatial_rescaler|d_losses|diag_gaussian|ema|fold_unfold|lr_schedules|perplexity|q_math"
    "|timestep_embedding|quantizer_legacy0|ddim_params_.*|sched_.*_1000_x0_v0|p_losses_l1_eps_lv1_elbo0.001"
    "|traj_(ddim_S20_eta1_cfg5|plms_S4|ddpm_100_mask)|mod_(cross_attention|vae_down|vae_decoder_small)"
    "|mod_(unet_resblock_down_ssn|unet_tiny_noconv|x_transformer_lowvar)|nlayer_discriminator_2"
)


def counts(capsys) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_cases_of_all_small_kinds_pass(capsys):
    assert run_goldens.main([str(GOLDEN / "cases"), "--only", f"^({QUICK})$"]) == 0
    assert counts(capsys).endswith(" passed, 0 failed, 0 not supported")


@pytest.mark.slow
def test_all_cases_pass(capsys):
    assert run_goldens.main([str(GOLDEN / "cases")]) == 0
    assert counts(capsys).endswith(" passed, 0 failed, 0 not supported")


def copy(folder, name, meta=None, outputs=None, as_name=None):
    """A case with changed json fields and changed outputs (None: left out) in `folder`."""
    recorded = json.loads((GOLDEN / "cases" / f"{name}.json").read_text()) | (meta or {})
    with np.load(GOLDEN / "cases" / f"{name}.npz") as arrays:
        changed = {key: arrays[key] for key in arrays.files} | (outputs or {})
    for key, value in changed.items():
        recorded["outputs"].setdefault(key, {"shape": list(value.shape), "stored": "full"})
    (folder / f"{as_name or name}.json").write_text(json.dumps(recorded))
    np.savez(folder / f"{as_name or name}.npz", **changed)


def test_a_wrong_output_fails(tmp_path, capsys):
    with np.load(GOLDEN / "cases" / "perplexity.npz") as arrays:
        wrong = arrays["perplexity"] * np.float32(1.001)
    copy(tmp_path, "perplexity", outputs={"perplexity": wrong})
    assert run_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "perplexity perplexity 1.0e-03 1e-04 FAIL" in out and "perplexity cluster_use 0.0e+00 1e-04 pass" in out
    assert out.endswith("0 passed, 1 failed, 0 not supported\n")


def test_not_a_number_fails(tmp_path, capsys):
    copy(tmp_path, "perplexity", outputs={"perplexity": np.float32(np.nan)})
    assert run_goldens.main([str(tmp_path)]) == 1
    assert counts(capsys) == "0 passed, 1 failed, 0 not supported"


def test_what_cannot_be_compared_is_not_supported(tmp_path, capsys):
    copy(tmp_path, "perplexity", meta={"kind": "of another world"}, as_name="unknown_kind")
    copy(tmp_path, "perplexity", outputs={"novel": np.zeros(3, np.float32)}, as_name="unknown_output")
    copy(tmp_path, "cond_class_cin256-v2", meta={"manifest": "not_there"}, as_name="no_manifest")
    copy(tmp_path, "perplexity", as_name="well_known")
    assert run_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "unknown_kind not supported: no runner for a case of kind 'of another world'" in out
    assert "unknown_output not supported: nothing of ours to compare with novel" in out
    assert "no_manifest not supported, it ended with FileNotFoundError" in out
    assert out.endswith("1 passed, 0 failed, 3 not supported\n")


def test_no_case_at_all_is_an_error(tmp_path):
    assert run_goldens.main([str(tmp_path)]) == 1
    with pytest.raises(SystemExit):
        run_goldens.main([str(tmp_path / "missing")])


def test_a_case_is_known_by_its_contents(tmp_path, capsys):
    """Files named otherwise run all the same: the random streams are named by the json's fields."""
    for i, name in enumerate(("mod_cross_attention", "sched_cosine_0.0001_0.02_1000_eps_v0", "quantizer_legacy0")):
        copy(tmp_path, name, as_name=f"case_{i}")
    assert run_goldens.main([str(tmp_path)]) == 0
    assert counts(capsys) == "3 passed, 0 failed, 0 not supported"
