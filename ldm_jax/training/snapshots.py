"""Averaged parameters that are kept during training, WORKDIR/ema/STEP.safetensors: posthoc.py makes post-hoc EMAs of
them.

A file holds every track of the power-function EMA (tasks.Averaging), named "0/unet/...", "1/unet/...".
"""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from ldm_jax import files, hosts, tree
from ldm_jax.errors import ConfigError, SaveFailed
from ldm_jax.programs import on_host
from ldm_jax.training.state import TrainState

FOLDER = "ema"
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def steps(workdir: str | Path) -> list[int]:
    """Steps of the files, in order."""
    found = (files.at(workdir) / FOLDER).glob("*.safetensors")
    return sorted(int(path.stem) for path in found if path.stem.isdecimal())


def path_of(workdir: str | Path, step: int) -> Path:
    return files.at(workdir) / FOLDER / f"{step}.safetensors"


class Snapshots:
    """Writes the files. All hosts call it, the first one writes."""

    def __init__(self, workdir: str | Path, config, start: int):
        """start: the step where the run goes on; files of later steps are removed, because those steps come again, and
        what a write that was killed has left. ConfigError for options that do not fit."""
        section = config.get("ema", {})
        self.workdir, self.every = files.at(workdir), section.get("snapshot_every", 0)
        if self.every and (section.kind != "power" or section.snapshot_dtype not in TYPES):
            raise ConfigError(
                f"config.ema.snapshot_every={self.every} needs config.ema.kind='power' (not {section.kind!r}) and "
                f"config.ema.snapshot_dtype={section.snapshot_dtype!r} to be one of {', '.join(TYPES)}"
            )
        if self.every:
            self.dtype, self.sigma_rel = TYPES[section.snapshot_dtype], list(section.sigma_rel)
        hosts.decided(lambda: self._tidy(start))

    def _tidy(self, start: int) -> None:
        for step in steps(self.workdir):
            if step > start:
                path_of(self.workdir, step).unlink()
        for left in (self.workdir / FOLDER).glob("*.tmp"):
            left.unlink()

    def is_due(self, step: int, last: bool) -> bool:
        return self.every > 0 and (last or step % self.every == 0)

    def is_missed(self, step: int, last: bool) -> bool:
        """Whether the file of `step`, where the run goes on, was due and is not there."""
        return step > 0 and self.is_due(step, last) and not path_of(self.workdir, step).exists()

    def write(self, step: int, state: TrainState) -> None:
        """The tracks of the state after `step`. Arrays with numbers too large for the type are kept in float32.
        SaveFailed if they cannot be written; then nothing of them stays."""
        tracks = [state.ema, *(state.variables[f"ema_{i}"] for i in range(1, len(self.sigma_rel)))]
        arrays = {}
        for name, leaf in tree.flatten({str(i): track for i, track in enumerate(tracks)}).items():
            array = on_host(leaf)
            largest = np.abs(array).max(initial=0.0)
            fits = largest <= float(ml_dtypes.finfo(self.dtype).max)
            arrays[name] = np.asarray(array.astype(self.dtype if fits else np.float32), order="C")
        hosts.decided(lambda: self._write(path_of(self.workdir, step), arrays))

    def _write(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        from safetensors.numpy import save

        temporary, metadata = path.with_suffix(".tmp"), {"sigma_rel": json.dumps(self.sigma_rel)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if files.is_local(path):
                files.save_arrays(temporary, arrays, metadata)
                os.replace(temporary, path)
            else:
                path.write_bytes(save(arrays, metadata))
        except Exception as error:  # safetensors has its own for a full disk
            if files.is_local(path):
                temporary.unlink(missing_ok=True)
            raise SaveFailed(
                f"the averaged parameters of step {path.stem} could not be written: {path}: {error}. Make room, or "
                "give --config.ema.snapshot_every=0; then the same command goes on from the newest checkpoint"
            ) from error
