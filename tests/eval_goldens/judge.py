"""Loads the recorded cases of evaluation and compares outputs with them; numpy only."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.eval_goldens import made_up

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """meta: the json; golden: the recorded outputs; inputs: rebuilt. folder: above `cases`; manifests: of weights."""

    meta: dict
    golden: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    folder: Path
    manifests: Path

    @property
    def options(self) -> dict:
        return self.meta.get("options", {})

    def wants(self, *outputs: str) -> list[str]:
        """Those of `outputs` that the case records."""
        return [name for name in outputs if name in self.meta["outputs"]]

    def state(self, prefixes: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """The made-up state dict, with the case's factors on single tensors."""
        weights = self.meta["weights"]
        made = self._made(
            weights["model"], weights["manifest"], prefixes or tuple(weights.get("weight_prefixes", ("",)))
        )
        for key, factor in weights.get("scaled", {}).items():
            made[key] = made[key] * np.float32(factor)
        return made

    def heads(self) -> dict[str, np.ndarray]:
        """LPIPS' linear heads: made up, or from a file."""
        heads = self.meta["weights"]["heads"]
        if "npz" not in heads:
            return self._made(heads["model"], heads["manifest"])
        with np.load(self.folder / heads["npz"]) as file:
            return {key.removeprefix(heads["prefix"]): file[key] for key in file if key.startswith(heads["prefix"])}

    def _made(self, model: str, manifest: str, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
        shapes = json.loads((self.manifests / f"{manifest}.json").read_text())
        return made_up.make_state(model, shapes, prefixes)


def load(path: Path, manifests: Path = HERE / "manifests") -> Case:
    """The case of <path>.json and <path>.npz. Raises ValueError when an input is rebuilt differently here."""
    meta = json.loads(path.with_name(path.stem + ".json").read_text())
    with np.load(path.with_name(path.stem + ".npz")) as stored:
        golden = dict(stored)
    inputs = {name: made_up.build(recipe) for name, recipe in meta["inputs"].items()}
    for name, digest in meta.get("input_sha256", {}).items():
        if made_up.sha256(inputs[name]) != digest:
            raise ValueError(f"the input {name} is rebuilt differently on this machine: nothing can be said")
    return Case(meta, golden, inputs, path.parent.parent, manifests)


def difference(measure: str, got: np.ndarray, golden: np.ndarray) -> float:
    """abs, rel (of the largest), std (of the golden's), or mismatch (share of numbers that differ)."""
    got, want = np.asarray(got, np.float64), np.asarray(golden, np.float64)
    if got.shape != want.shape:
        return float("inf")
    if measure == "mismatch":
        return float((got != want).mean())
    same = got == want  # the PSNR of equal images is infinite in both
    gap = np.abs(np.where(same, 0, got) - np.where(same, 0, want)).max(initial=0)
    if gap == 0:  # also where the golden is 0 everywhere, which nothing can be divided by
        return 0.0
    if measure == "std":
        gap = gap / want.std()
    elif measure == "rel":
        gap = gap / np.abs(want).max()
    elif measure != "abs":
        raise ValueError(f"unknown measure {measure}")
    return float(gap) if gap == gap else float("inf")


def judge(case: Case, outputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """(line, "pass" | "FAIL" | "missing") for each output that the case records."""
    for name, facts in case.meta["outputs"].items():
        start = f"{case.meta['name']} {name}"
        asked = f"{facts['measure']} {facts['tolerance']:.0e}"
        if name not in outputs:
            yield f"{start} - {asked} missing", "missing"
            continue
        got = np.asarray(outputs[name])
        if list(got.shape) != facts["shape"]:
            yield f"{start} inf {asked} FAIL shape {list(got.shape)}, not {facts['shape']}", "FAIL"
            continue
        stored = facts.get("stored", "full")
        if stored.startswith("strided:"):
            got = got.ravel()[:: int(stored.removeprefix("strided:"))]
        gap = difference(facts["measure"], got, case.golden[name])
        verdict = "pass" if gap <= facts["tolerance"] else "FAIL"
        yield f"{start} {gap:.1e} {asked} {verdict}", verdict
