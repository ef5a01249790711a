"""What a run reports: a line on the screen, metrics.jsonl always, TensorBoard event files, pictures as PNG."""

import json
import math
import time
from pathlib import Path

import numpy as np

from ldm_jax import files
from ldm_jax.images import save_png

VALIDATION = "val_"  # names of validation metrics begin so
METRICS = "metrics_"  # of the names of the model's metrics, config.every.metrics
EVERY = 10.0  # seconds


class Writer:
    """Metrics of one run. Lines of steps after `resume_step` are dropped: those steps are done again."""

    def __init__(self, workdir: str | Path, resume_step: int = 0, active: bool = True):
        self.workdir, self.active, self.events = files.at(workdir), active, None
        if not active:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / "metrics.jsonl"
        before = path.read_text().splitlines() if path.exists() else []
        kept = "".join(line + "\n" for line in before if _step_of(line) <= resume_step)
        if before:
            files.write(path, kept)
        if not files.is_local(path):
            self.file = _Rewritten(path, kept)
            print(f"TensorBoard files are off, because {workdir} is in a bucket; metrics.jsonl is written.")
            return
        self.file = path.open("a")
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            print("TensorBoard files are off (pip install 'ldm_jax[logging]'); metrics.jsonl is written.")
        else:
            self.events = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=resume_step + 1)

    def scalars(self, step: int, values: dict[str, float], prefix: str = "") -> None:
        if not self.active:
            return
        values = {prefix + k: float(v) for k, v in values.items()}
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        self.file.flush()
        if self.events:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8 [H,W,C] -> pictures/<name>_<step>.png and TensorBoard."""
        if not self.active:
            return
        save_png(_picture(self.workdir, name, step), image)
        if self.events:
            self.events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """May be called more than once."""
        if self.active:
            self.file.close()
            if self.events:
                self.events.close()


class _Rewritten:
    """A text file in a bucket, which cannot grow: it is written anew, every `EVERY` seconds at most."""

    def __init__(self, path: Path, text: str):
        self.path, self.lines, self.written = path, [text], time.monotonic()
        self.kept = len(self.lines)  # of the lines, those that are written

    def write(self, line: str) -> None:
        self.lines.append(line)

    def flush(self) -> None:
        if time.monotonic() - self.written > EVERY:
            self.close()

    def close(self) -> None:
        if self.kept < len(self.lines):
            files.write(self.path, "".join(self.lines))
            self.kept, self.written = len(self.lines), time.monotonic()


def _picture(workdir: Path, name: str, step: int) -> Path:
    return workdir / "pictures" / f"{name}_{step:07d}.png"


def has_pictures(workdir: str | Path, step: int) -> bool:
    """Whether there are pictures of that step."""
    wanted = _picture(files.at(workdir), "*", step)
    return any(wanted.parent.glob(wanted.name))


def has_numbers(workdir: str | Path, step: int, prefix: str) -> bool:
    """Whether metrics.jsonl has numbers of that step whose names begin so."""
    path = files.at(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return any(_step_of(line) == step and f'"{prefix}' in line for line in lines)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # a line cut short by a kill
        return math.inf


def headline(values: dict[str, float], order: tuple[str, ...]) -> str:
    """`loss 0.1234 ...`: the named values that are there, in this order."""
    return "  ".join(f"{k} {_short(values[k])}" for k in order if k in values)


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
