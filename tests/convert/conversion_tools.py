"""Made-up checkpoints of the recipes' tiny variants, and what a conversion must give back."""

import functools
import gzip
import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ldm_jax import build, recipes, tree
from ldm_jax.cli import convert
from ldm_jax.convert import compvis, names
from ldm_jax.convert.tensors import weights_of
from ldm_jax.training import setup

HERE = Path(__file__).parent


@functools.cache
def manifests() -> dict[str, dict[str, list[int]]]:
    """{model: {state-dict key: shape}} of all 32 configurations of the original."""
    return json.loads(gzip.decompress((HERE / "manifests.json.gz").read_bytes()))


def recipe(name: str):
    """The config of "NAME" or "NAME:VARIANT"."""
    return recipes.load(name)


@functools.cache
def shapes_of(name: str):
    """(config, TrainState, frozen) of shapes."""
    config = recipe(name)
    return (config, *setup.abstract_run(config))


def template(name: str, ema: bool = True):
    return weights_of(*shapes_of(name), ema)


def checkpoint(name: str, ema: bool = True, scale: float | None = None, dtype=np.float32) -> dict[str, np.ndarray]:
    """A state dict as the original would hold it, of random numbers."""
    weights, rng = template(name, ema), np.random.default_rng(0)
    leaves = tree.flatten(weights)
    state = {
        key: rng.standard_normal(names.torch_shape(path, leaves[path].shape)).astype(dtype)
        for path, key in compvis.original_keys(weights).items()
        if key != "scale_factor"
    }
    config = shapes_of(name)[0]
    if config.task == "first_stage":
        lpips = {"loss.logvar": np.zeros((), np.float32), "loss.perceptual_loss.lin0.model.1.weight": np.ones((1, 4))}
        return state | lpips | {"loss.discriminator.main.3.num_batches_tracked": np.asarray(5)}
    state |= compvis.schedule_buffers(build.schedule(config).betas)
    if ema:
        state |= {"model_ema.decay": np.asarray(0.9999, np.float32), "model_ema.num_updates": np.asarray(7, np.int32)}
    return state if scale is None else state | {"scale_factor": np.asarray(scale, np.float32)}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same keys, types, shapes and bits."""
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape, key
        assert found[key].tobytes() == array.tobytes(), key


def to_run(name: str, source: Path, target: Path, *options: str) -> None:
    convert.main([f"--config={name}", "--from", str(source), "--to", str(target), *options])


def from_run(source: Path, target: Path, *options: str) -> None:
    convert.main(["--from", str(source), "--to", str(target), *options])


@contextmanager
def refused(capsys, pattern: str):
    """The command ends with code 2 and one paragraph that `pattern` is found in."""
    with pytest.raises(SystemExit) as stopped:
        yield
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and re.search(pattern, told) and "Traceback" not in told, told
