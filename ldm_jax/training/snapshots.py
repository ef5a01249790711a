"""Averaged parameters that are kept during training, WORKDIR/ema/STEP.safetensors: posthoc.py makes post-hoc EMAs of
them.

A file holds every track of the power-function EMA (tasks.Averaging), named "0/unet/...", "1/unet/...", and a checksum.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from ldm_jax import files, hosts, tree
from ldm_jax.convert.safetensors_file import read_safetensors
from ldm_jax.errors import ConfigError, Damaged, SaveFailed, UsageError
from ldm_jax.programs import on_host
from ldm_jax.training.state import TrainState

FOLDER = "ema"
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def steps(workdir: str | Path) -> list[int]:
    """Steps of the files, in order."""
    place = files.at(workdir) / FOLDER
    with files.reaching(place):
        found = [*place.glob("*.safetensors")]
    return sorted(int(path.stem) for path in found if path.stem.isdecimal())


def path_of(workdir: str | Path, step: int) -> Path:
    return files.at(workdir) / FOLDER / f"{step}.safetensors"


def _checksum(arrays: dict[str, np.ndarray], sigma_rel: str) -> str:
    found = zlib.crc32(sigma_rel.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        found = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), found)
        found = zlib.crc32(array.reshape(-1).view(np.uint8), found)
    return f"crc32:{found:08x}"


def read(workdir: str | Path, step: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """(the arrays of a file, the relative widths of its tracks). Damaged if they are not those that were written; files
    of older versions have no checksum, and are read as they are. UsageError for what is no such file."""
    path = path_of(workdir, step)
    arrays, metadata = read_safetensors(path)
    sigma_rel = metadata.get("sigma_rel", "")
    if metadata.get("checksum", "") not in ("", _checksum(arrays, sigma_rel)) or not sigma_rel:
        raise Damaged(
            f"{path} is damaged: it is not what was written (another CRC-32). Bring it back from a copy, or remove it: "
            "then the average is made of the others"
        )
    return arrays, json.loads(sigma_rel)


def audit(workdir: str | Path) -> Iterator[tuple[str, str, bool]]:
    """(name, what was found, whether it is bad) of each file."""
    for step in steps(workdir):
        try:
            read(workdir, step)
        except UsageError as error:
            found = str(error)
        else:
            found = ""
        yield f"{FOLDER}/{step}", found or "ok", bool(found)


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
        return step > 0 and self.is_due(step, last) and not files.exists(path_of(self.workdir, step))

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

        temporary, sigma_rel = path.with_suffix(".tmp"), json.dumps(self.sigma_rel)
        metadata = {"sigma_rel": sigma_rel, "checksum": _checksum(arrays, sigma_rel)}
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
