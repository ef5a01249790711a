"""config.json of a run, read back."""

import json

import pytest

from ldm_jax import checkpoint
from ldm_jax.errors import Missing


def test_runs_of_older_versions_get_the_options_they_lack(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"task": "first_stage", "optim": {"final_fraction": 0.5}}))
    config = checkpoint.load_config(tmp_path)
    assert config == {"task": "first_stage", "optim": {"warmup_fraction": 0.0, "decay_steps": 0, "final_fraction": 0.5}}
    now = {"task": "first_stage", "optim": config["optim"] | {"final_fraction": 1.0}}
    assert checkpoint.changes(tmp_path, now) == {"optim.final_fraction": (0.5, 1.0)}


def test_a_folder_without_a_configuration_is_no_run(tmp_path):
    assert checkpoint.changes(tmp_path, {"task": "ldm"}) == {}
    with pytest.raises(Missing, match="not a run directory"):
        checkpoint.load_config(tmp_path)
