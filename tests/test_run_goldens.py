"""The golden runner: it passes on our copies, and it notices wrong, missing and unknown outputs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests import golden_models, run_goldens
from tests.golden import weights
from tests.golden_kinds import judge
from tests.golden_tools import GOLDEN, Case, load

# A case of every kind that costs a second at most; a test below has those of other kinds (`RENAMED`). Most others have
# tests of their own beside the code.
QUICK = (
    "cond_class_cin256-v2|cond_spatial_rescaler|d_losses|diag_gaussian|ema|fold_unfold|lr_schedules|perplexity|q_math"
    "|timestep_embedding|ddim_params_.*|sched_.*_1000_x0_v0|traj_(ddim_S10_eta0|plms_S4)|nlayer_discriminator_2"
)
RENAMED = ("mod_cross_attention", "sched_cosine_0.0001_0.02_1000_eps_v0", "quantizer_legacy0",
           "p_losses_l1_eps_lv1_elbo0.001")  # fmt: skip


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
    """A case with changed json fields (None: left out) and changed outputs in `folder`."""
    recorded = json.loads((GOLDEN / "cases" / f"{name}.json").read_text()) | (meta or {})
    recorded = {key: value for key, value in recorded.items() if value is not None}
    with np.load(GOLDEN / "cases" / f"{name}.npz") as arrays:
        changed = {key: arrays[key] for key in arrays.files} | (outputs or {})
    for key, value in changed.items():
        recorded["outputs"].setdefault(key, {"shape": list(value.shape), "stored": "full"})
    write(folder, as_name or name, recorded, changed)


def write(folder, name, meta, outputs):
    (folder / f"{name}.json").write_text(json.dumps(meta))
    np.savez(folder / f"{name}.npz", **outputs)


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
    """Files named otherwise run all the same, and options that only a name told are found by what fits."""
    for i, name in enumerate(RENAMED):
        copy(tmp_path, name, meta={"name": "renamed" if i % 2 else None}, as_name=f"case_{i}")
    assert run_goldens.main([str(tmp_path)]) == 0
    assert counts(capsys) == f"{len(RENAMED)} passed, 0 failed, 0 not supported"


def test_recorded_facts_beside_the_outputs_count(tmp_path, capsys):
    """An error of the original that is none here fails; so do arrays of another shape than the json says."""
    copy(tmp_path, "ddim_params_0.0015_0.0195", meta={"extra": {"errors": {"S10_uniform": "IndexError"}}})
    copy(tmp_path, "perplexity", outputs={"perplexity": np.zeros(2, np.float32)})
    lacking = json.loads((GOLDEN / "cases" / "d_losses.json").read_text())
    write(tmp_path, "d_losses", lacking, {"hinge": load("d_losses").outputs["hinge"]})
    assert run_goldens.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "S10_uniform is an error in the original, and none here" in out
    assert "perplexity FAIL perplexity: the npz holds (2,), its json stands for ()" in out
    assert "d_losses not supported: d_losses.npz lacks hinge_exemplar, vanilla" in out
    assert out.endswith("0 passed, 2 failed, 1 not supported\n")


def first_masked_plms_state(case, alpha_bar, steps):
    """x after the first step of a masked PLMS run, in float64: mask, a tried step, the mean of two eps."""
    (t, after), x0, mask = steps, case.inputs["x0"], case.inputs["mask"]
    a, b = alpha_bar[t], alpha_bar[after]
    noise = weights.normal(f"input/{case.name}/qnoise/0", x0.shape)
    x = mask * (np.sqrt(a) * x0 + np.sqrt(1 - a) * noise) + (1 - mask) * case.inputs["x_T"]

    def eps(x, t):
        return 0.3 * np.sin(x) + 0.001 * t

    def move(eps):
        return np.sqrt(b) * (x - np.sqrt(1 - a) * eps) / np.sqrt(a) + np.sqrt(1 - b) * eps

    return move((eps(x, t) + eps(move(eps(x, t)), after)) / 2)


def test_the_first_state_of_masked_plms():
    """Only that state is recorded (extra.kept_i: one step is still to come)."""
    masked = load("traj_ddpm_100_mask")
    alpha_bar = load("sched_linear_0.0015_0.0195_1000_x0_v0").outputs["alphas_cumprod"].astype(np.float64)
    x = first_masked_plms_state(masked, alpha_bar, (501, 1))
    meta = masked.meta | {"kind": "plms masked", "S": 2, "extra": {"kept_i": [1]}}
    meta["outputs"] = {"x_traj": {"shape": [1, *x.shape], "stored": "full"}}
    (judged,) = judge(replace(masked, meta=meta, outputs={"x_traj": x[None]}))
    assert judged.difference < 1e-5


class EveryFourthPixel:
    """Stands for a first stage."""

    def apply(self, variables, image, method):
        return image[:, ::4, ::4]


def test_a_masked_picture_and_its_mask_become_the_concatenated_input(monkeypatch):
    """The picture encoded with the conditioner's weights, then the mask at the latent's size, in -1..1."""
    asked = []

    def first_stage(case, prefix):
        asked.append(prefix)
        return EveryFourthPixel(), {}

    monkeypatch.setattr(golden_models, "first_stage", first_stage)
    rng = np.random.default_rng(0)
    image, holes = rng.normal(size=(2, 3, 16, 24)).astype(np.float32), rng.integers(0, 2, (2, 1, 16, 24)).astype("f4")
    small = image[:, :, ::4, ::4]
    inputs = {"mask": 2 * holes - 1, "masked_image": image, "x": np.zeros_like(small)}
    meta = {"name": "", "weight_prefixes": [golden_models.UNET, golden_models.CONDITIONER]}
    (told,) = golden_models.conditionings(Case(meta, inputs, {}), 7).values()
    expected = np.concatenate([small, 2 * holes[:, :, ::4, ::4] - 1], axis=1)
    np.testing.assert_allclose(np.moveaxis(told.concat, -1, 1), expected, atol=1e-6)
    readings = golden_models.conditionings(Case(meta, inputs | {"mask": holes}, {}), 7)
    np.testing.assert_allclose(readings["as it is"].concat[..., 3], holes[:, 0, ::4, ::4], atol=1e-6)
    np.testing.assert_allclose(readings["0..1 to be -1..1"].concat, told.concat, atol=1e-6)
    assert asked == [golden_models.CONDITIONER] * 2
    given = {"mask": 2 * holes[:, :, ::4, ::4] - 1, "latent": small, "x": np.zeros_like(small)}
    (told,) = golden_models.conditionings(Case(meta, given, {}), 7).values()
    np.testing.assert_allclose(np.moveaxis(told.concat, -1, 1), expected)
