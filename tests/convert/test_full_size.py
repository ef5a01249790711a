"""Checkpoints of all 32 configurations of the original at full size, to run directories and back, bit by bit.

About half an hour and 12 GiB of memory; 20 GB of disk for the largest.
"""

import shutil

import numpy as np
import pytest

from ldm_jax import build
from ldm_jax.convert import compvis, torch_reader, torch_writer
from tests.convert.conversion_tools import assert_same, from_run, manifests, recipe, to_run
from tests.convert.test_compvis import RECIPES
from tests.golden.weights import make_weight

SCALARS = {"scale_factor": np.float32(0.18), compvis.EMA_DECAY: np.float32(0.9999), compvis.EMA_UPDATES: np.int32(77)}


def values(model: str) -> dict:
    """{key: function that gives the array}: made-up weights, and the tables that belong to the schedule."""
    config, given = recipe(RECIPES[model]), dict(SCALARS)
    if config.task == "ldm":
        given |= compvis.schedule_buffers(build.schedule(config).betas)
    return {
        key: lambda key=key, shape=shape: np.asarray(given[key] if key in given else make_weight(key, shape))
        for key, shape in manifests()[model].items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(RECIPES))
def test_round_trip(model, tmp_path):
    given = values(model)
    torch_writer.write_torch(tmp_path / "model.ckpt", given, 5)
    to_run(RECIPES[model], tmp_path / "model.ckpt", tmp_path / "run")
    from_run(tmp_path / "run", tmp_path / "back.ckpt")
    first, back = (torch_reader.read_torch(tmp_path / f"{name}.ckpt") for name in ("model", "back"))
    assert_same(back, first)
    del first, back
    shutil.rmtree(tmp_path)  # pytest would keep three runs of everything
