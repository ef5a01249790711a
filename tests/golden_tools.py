"""Goldens: recorded outputs of the original PyTorch code, and its made-up weights (tests/golden/weights.py).

    case = load("mod_vae_attn")
    params = to_flax(template, torch_state(case))      # template: eval_shape of the module's params
    rel(nchw(ours), case.outputs["y"])                  # max|difference| / std(golden)

Arrays keep the original's layout (NCHW); `nhwc` and `nchw` convert.
"""

import gc
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.convert import names
from tests.fast import compiled
from tests.golden import weights

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4


class UnsupportedError(Exception):
    """A case, or one of its outputs, that we have no way to run."""


class MismatchError(ValueError):
    """Something that a case records beside its outputs' values, or an output's shape, and that is otherwise here."""


@dataclass(frozen=True)
class Ours:
    """Our value of one output, in the original's layout, and what is asked of it when not the usual.

    scale: what differences are divided by, instead of the golden's standard deviation.
    reason: why the tolerance or scale differs; or a remark that is printed.
    """

    value: np.ndarray
    tolerance: float = TOLERANCE
    scale: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """One recorded run: `meta` (its json), `inputs` and `outputs` by name, and where its manifest lies."""

    meta: dict
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    manifests: Path = field(default=GOLDEN / "manifests")

    @property
    def name(self) -> str:
        return self.meta["name"]

    @property
    def stream(self) -> str:
        """What random streams are named by: the "<...>" of the inputs' "input/<...>/x", else the case's name."""
        names = (str(recipe.get("name", "")) for recipe in self.meta.get("inputs", {}).values())
        found = (re.fullmatch(r"input/(.+)/[^/]+", name) for name in names)
        return next((m[1] for m in found if m), self.name)

    @property
    def about(self) -> str:
        """The case's own words about itself."""
        return " ".join(str(self.meta.get(key, "")) for key in ("kind", "note"))


def load(name: str, cases: Path = GOLDEN / "cases", manifests: Path = GOLDEN / "manifests") -> Case:
    """The case <cases>/<name>.{json,npz}. Outputs stored strided stay 1-D; see `strided`.

    Inputs with fractions become float32, in which the original ran. Raises UnsupportedError for outputs that the
    json lists and the npz lacks.
    """
    meta = json.loads((cases / f"{name}.json").read_text())
    meta.setdefault("name", name)
    with np.load(cases / f"{name}.npz") as arrays:
        outputs = {key: arrays[key] for key in arrays.files}
    listed = meta.setdefault("outputs", {})
    if lacking := sorted(set(listed) - set(outputs)):
        raise UnsupportedError(f"{name}.npz lacks {', '.join(lacking)}")
    for key in outputs:
        listed.setdefault(key, {"shape": list(outputs[key].shape)})
    inputs = {key: weights.build(recipe) for key, recipe in meta.get("inputs", {}).items()}
    inputs = {k: v.astype(np.float32) if np.issubdtype(v.dtype, np.floating) else v for k, v in inputs.items()}
    return Case(meta, inputs, outputs, manifests)


def manifest(name: str, folder: Path = GOLDEN / "manifests") -> dict[str, tuple[int, ...]]:
    """{state-dict key: shape} of <folder>/<name>.json."""
    shapes = json.loads((folder / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


class MadeUpState(Mapping):
    """A state dict {key without `strip`: array} whose arrays are made when asked for, and not kept."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], named: str = "", strip: str = ""):
        """`named` + key names the random stream of a tensor."""
        self.named, self.strip = named, strip
        self.shapes = {key.removeprefix(strip): tuple(shape) for key, shape in shapes.items()}

    def __getitem__(self, key: str) -> np.ndarray:
        return weights.make_weight(self.named + self.strip + key, self.shapes[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def without(self, prefix: str) -> "MadeUpState":
        kept = {self.strip + key: s for key, s in self.shapes.items() if not key.startswith(prefix)}
        return MadeUpState(kept, self.named, self.strip)


def stream_prefix(case: Case) -> str:
    """What stands before a key in the name of its random stream: "<name>/", or what `weights` says."""
    found = re.search(r"make_weight\(['\"]([^'\"]+)['\"] ?\+ ?key", case.meta.get("weights", ""))
    return found[1] if found else case.stream + "/"


def lazy_state(case: Case, prefix: str | None = None) -> MadeUpState:
    """The made-up state dict of a case. `prefix` picks a part of its manifest's keys and is stripped."""
    if "weight_manifest" in case.meta:
        return MadeUpState(case.meta["weight_manifest"], stream_prefix(case))
    shapes = manifest(case.meta["manifest"], case.manifests)
    prefixes = (prefix,) if prefix is not None else tuple(case.meta.get("weight_prefixes", ("",)))
    shapes = {k: s for k, s in shapes.items() if k.startswith(prefixes) and not weights.is_fixed(k)}
    return MadeUpState(shapes, "", prefix or "")


def torch_state(source: Case | str, prefixes: tuple[str, ...] | None = None, strip: str = "") -> dict:
    """The made-up state dict {key: array} of a case or of a manifest's name.

    `prefixes` keeps the keys that start so (default: the case's own, or all); `strip` is then removed.
    """
    folder = GOLDEN / "manifests"
    if isinstance(source, Case) and "weight_manifest" in source.meta:
        state = lazy_state(source)
        return {k.removeprefix(strip): state[k] for k in state if k.startswith(prefixes or ("",))}
    if isinstance(source, Case):
        prefixes, folder = prefixes or tuple(source.meta["weight_prefixes"]), source.manifests
        source = source.meta["manifest"]
    return weights.make_state(manifest(source, folder), prefixes or ("",), strip)


def to_flax(template, state: Mapping):
    """The params tree of `template` (arrays or ShapeDtypeStructs) filled from a torch state dict."""
    return jax.tree.map(jnp.asarray, names.from_torch(state, template))


def restore(module, state: Mapping, *inputs, **options) -> dict:
    """{"params"} of a Linen module filled from a torch state dict, on the device, leaf by leaf."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda *a: module.init(key, *a, **options), *inputs).get("params", {})
    leaves, structure = jax.tree.flatten(names.from_torch(state, shapes))
    for i, leaf in enumerate(leaves):
        leaves[i] = jnp.asarray(leaf)
        leaf = None
    gc.collect()
    return {"params": jax.tree.unflatten(structure, leaves)}


def run_once(fn: Callable, *args):
    """fn(*args) compiled in a hurry."""
    return compiled(fn, *args)(*args)


def rel(ours, golden: np.ndarray) -> float:
    """max|ours - golden| / std(golden). Shapes must be equal."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == golden.shape, f"ours {ours.shape}, golden {golden.shape}"
    return float(np.abs(ours - golden).max() / (golden.std() or 1.0))


def difference(case: Case, output: str, ours: Ours) -> float:
    """max|ours - golden| / the golden's standard deviation, or / its largest value where that is (nearly) 0.

    Whole numbers: the share that differs. Numbers stored in float16 stand for all that round to them.
    Raises MismatchError where the shapes differ.
    """
    golden, recipe = case.outputs[output], case.meta["outputs"][output]
    value = np.asarray(ours.value)
    if list(value.shape) != list(recipe["shape"]):
        raise MismatchError(f"{output}: ours has shape {value.shape}, the golden {recipe['shape']}")
    value = strided(value, case, output)
    if value.shape != golden.shape:
        raise MismatchError(f"{output}: the npz holds {golden.shape}, its json stands for {value.shape}")
    if np.issubdtype(golden.dtype, np.integer) or golden.dtype == bool:
        return float(np.mean(value != golden))
    rounding = np.spacing(np.abs(golden)).astype(np.float64) / 2 if golden.dtype == np.float16 else 0.0
    golden = golden.astype(np.float64)
    apart = np.maximum(np.abs(value.astype(np.float64) - golden) - rounding, 0.0).max(initial=0.0)
    largest = np.abs(golden).max(initial=0.0)
    std = golden.std()
    scale = ours.scale or (std if std > 1e-6 * largest else largest) or 1.0
    return float(apart / scale)


def strided(ours, case: Case, output: str) -> np.ndarray:
    """Our array (original layout) as the case stores it: whole, or every stride-th value of it, raveled."""
    recipe = case.meta["outputs"][output]
    ours = np.asarray(ours)
    return ours if recipe.get("stored", "full") == "full" else ours.ravel()[:: recipe["stride"]]


def log_prefix(case: Case) -> str:
    """What a case's logged numbers are called, before the dot: "log_train" or "log_val"."""
    found = (re.match(r"(log_\w+)\.", key) for key in case.outputs)
    return next((m[1] for m in found if m), "log_train")


def nhwc(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def nchw(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)
