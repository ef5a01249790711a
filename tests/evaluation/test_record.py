"""The table, and the files that are left."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ldm_jax.evaluation import record


def row(name, reference="b", pictures=None, **metrics):
    return SimpleNamespace(name=name, reference=reference, metrics=metrics, settings={}, pictures=pictures or {})


def test_a_row_a_report():
    assert record.table([row("a", FID=1.5, PSNR=20.0), row("other", FID=2.0)]).splitlines() == [
        "       FID  PSNR", "a      1.5    20", "other    2      ",
    ]  # fmt: skip
    wide = {f"a metric with a long name {i}": 1.0 for i in range(9)}
    assert len(record.table([row("a", **wide)]).splitlines()) == 10


def test_what_rows_were_compared_with():
    assert record.references([row("a"), row("other")]) == "compared with b"
    assert record.references([row("a"), row("other", "c")]) == "a: compared with b\nother: compared with c"


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    command = dict(guidance_interval=(0.1, float("inf")), seed=0)
    record.write(tmp_path, command, [row("a", PSNR=float("inf"), PSNR_std=float("nan"), FID=1.5)], 1.0)

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    found = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=refuse)
    assert found["reports"][0]["metrics"] == dict(PSNR=None, PSNR_std=None, FID=1.5)
    assert found["command"] == dict(guidance_interval=[0.1, None], seed=0)


def test_pictures_of_several_rows_have_their_number(tmp_path):
    picture = {"random": np.zeros((4, 4, 3), np.uint8)}
    record.write(tmp_path, {}, [row("a", pictures=picture), row("b", pictures=picture)], 1.0)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["0_random.png", "1_random.png"]
