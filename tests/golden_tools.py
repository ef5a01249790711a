"""Goldens: recorded outputs of the original PyTorch code, and its made-up weights (tests/golden/weights.py).

    case = load("mod_vae_attn")
    params = to_flax(template, torch_state(case))      # template: eval_shape of the module's params
    rel(nchw(ours), case.outputs["y"])                  # max|difference| / std(golden)

Arrays keep the original's layout (NCHW); `nhwc` and `nchw` convert.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_jax.convert import names
from tests.golden import weights

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One recorded run: `meta` (its json), `inputs` and `outputs` by name."""

    meta: dict
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def load(name: str) -> Case:
    """The case tests/golden/cases/<name>.{json,npz}. Outputs stored strided stay 1-D; see `strided`."""
    meta = json.loads((GOLDEN / "cases" / f"{name}.json").read_text())
    with np.load(GOLDEN / "cases" / f"{name}.npz") as arrays:
        outputs = {key: arrays[key] for key in arrays.files}
    inputs = {key: weights.build(recipe) for key, recipe in meta.get("inputs", {}).items()}
    return Case(meta, inputs, outputs)


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """{state-dict key: shape} of tests/golden/manifests/<name>.json."""
    shapes = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def torch_state(source: Case | str, prefixes: tuple[str, ...] | None = None, strip: str = "") -> dict:
    """The made-up state dict {key: array} of a case or of a manifest's name.

    `prefixes` keeps the keys that start so (default: the case's own, or all); `strip` is then removed.
    """
    if isinstance(source, Case) and "weight_manifest" in source.meta:
        name, shapes = source.meta["name"], source.meta["weight_manifest"]
        state = {key: weights.make_weight(f"{name}/{key}", shape) for key, shape in shapes.items()}
        return {k[len(strip) :]: v for k, v in state.items() if k.startswith(prefixes or ("",))}
    if isinstance(source, Case):
        prefixes = prefixes or tuple(source.meta["weight_prefixes"])
        source = source.meta["manifest"]
    return weights.make_state(manifest(source), prefixes or ("",), strip)


def to_flax(template, state: dict):
    """The params tree of `template` (arrays or ShapeDtypeStructs) filled from a torch state dict."""
    return names.from_torch(state, template)


def rel(ours, golden: np.ndarray) -> float:
    """max|ours - golden| / std(golden). Shapes must be equal."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == golden.shape, f"ours {ours.shape}, golden {golden.shape}"
    return float(np.abs(ours - golden).max() / (golden.std() or 1.0))


def strided(ours, case: Case, output: str) -> np.ndarray:
    """Our array (original layout) as the case stores it: whole, or every stride-th value of it, raveled."""
    recipe = case.meta["outputs"][output]
    ours = np.asarray(ours)
    return ours if recipe["stored"] == "full" else ours.ravel()[:: recipe["stride"]]


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def nchw(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)
