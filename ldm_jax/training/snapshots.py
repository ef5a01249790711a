"""Averaged parameters that are kept during training, WORKDIR/ema/STEP.safetensors: posthoc.py makes averages of other
lengths of them.

A file holds every track of power-function averages (tasks.Averaging), named "0/unet/...", "1/unet/...".
"""

import json
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from ldm_jax import tree
from ldm_jax.errors import ConfigError
from ldm_jax.programs import on_host
from ldm_jax.training.state import TrainState

FOLDER = "ema"
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def steps(workdir: str | Path) -> list[int]:
    """Steps of the files, in order."""
    return sorted(int(path.stem) for path in (Path(workdir) / FOLDER).glob("*.safetensors") if path.stem.isdecimal())


def path_of(workdir: str | Path, step: int) -> Path:
    return Path(workdir) / FOLDER / f"{step}.safetensors"


class Snapshots:
    """Writes the files. All hosts call it, the first one writes."""

    def __init__(self, workdir: str | Path, config, start: int):
        """start: the step where the run goes on; files of later steps are removed, because those steps come again.
        ConfigError for options that do not fit."""
        section = config.get("ema", {})
        self.workdir, self.every = Path(workdir), section.get("snapshot_every", 0)
        if not self.every:
            return
        if section.kind != "power" or section.snapshot_dtype not in TYPES:
            raise ConfigError(
                f"config.ema.snapshot_every={self.every} needs config.ema.kind='power' (not {section.kind!r}) and "
                f"config.ema.snapshot_dtype={section.snapshot_dtype!r} to be one of {', '.join(TYPES)}"
            )
        self.dtype, self.sigma_rel = TYPES[section.snapshot_dtype], list(section.sigma_rel)
        if jax.process_index() == 0:
            for step in steps(workdir):
                if step > start:
                    path_of(workdir, step).unlink()

    def is_due(self, step: int, last: bool) -> bool:
        return self.every > 0 and (last or step % self.every == 0)

    def write(self, step: int, state: TrainState) -> None:
        """The tracks of the state after `step`. Arrays with numbers too large for the type are kept in float32."""
        from safetensors.numpy import save_file

        tracks = [state.ema, *(state.variables[f"ema_{i}"] for i in range(1, len(self.sigma_rel)))]
        arrays = {}
        for name, leaf in tree.flatten({str(i): track for i, track in enumerate(tracks)}).items():
            array = on_host(leaf)
            largest = np.abs(array).max(initial=0.0)
            fits = largest <= float(ml_dtypes.finfo(self.dtype).max)
            arrays[name] = np.asarray(array.astype(self.dtype if fits else np.float32), order="C")
        if jax.process_index() == 0:
            path = path_of(self.workdir, step)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            save_file(arrays, temporary, {"sigma_rel": json.dumps(self.sigma_rel)})
            os.replace(temporary, path)
