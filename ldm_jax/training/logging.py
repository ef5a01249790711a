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
    """Metrics of one run. Lines of steps after `resume_step` are dropped: those steps are done again.

    All methods raise WriteFailed where something cannot be written."""

    def __init__(self, workdir: str | Path, resume_step: int = 0, active: bool = True):
        self.workdir, self.active, self.events = files.at(workdir), active, None
        if not active:
            return
        self.path = self.workdir / "metrics.jsonl"
        with files.writing(self.path):
            self._open(self.path, resume_step)

    def _open(self, path: Path, resume_step: int) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        before = _lines(path)
        damaged = [i for i, line in enumerate(before[:-1], 1) if _step_of(line) is None]  # the last: cut by a kill
        if damaged:
            print(f"{path}: damaged lines are left out: {len(damaged)}, the first is line {damaged[0]}", flush=True)
        steps = (_step_of(line) for line in before)
        kept = "".join(line + "\n" for line, step in zip(before, steps) if step is not None and step <= resume_step)
        if before:
            files.write(path, kept)
        if not files.is_local(path):
            self.file = _Rewritten(path, kept)
            print(f"TensorBoard files are off, because {self.workdir} is in a bucket; metrics.jsonl is written.")
            return
        self.file = path.open("a")
        try:
            self.events = _Events(self.workdir / "tensorboard", resume_step + 1)
        except ImportError:
            print("TensorBoard files are off (pip install 'ldm_jax[logging]'); metrics.jsonl is written.")

    def scalars(self, step: int, values: dict[str, float], prefix: str = "") -> None:
        if not self.active:
            return
        values = {prefix + k: float(v) for k, v in values.items()}
        with files.writing(self.path):
            self.file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
            self.file.flush()
        if self.events:
            self.events.scalars(step, values)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8 [H,W,C] -> pictures/<name>_<step>.png and TensorBoard."""
        if not self.active:
            return
        path = _picture(self.workdir, name, step)
        with files.writing(path):
            save_png(path, image)
        if self.events:
            self.events.picture(step, name, image)

    def close(self) -> None:
        """May be called more than once."""
        if not self.active:
            return
        with files.writing(self.path):
            self.file.close()
        if self.events:
            self.events.close()


class _Events:
    """TensorBoard's file. tensorboardX's SummaryWriter has a thread that ends on a full disk, and then waits for it for
    ever; so it is written here."""

    def __init__(self, folder: Path, first_step: int):
        """first_step: what an earlier start has written of it and of later steps is not shown. ImportError without
        tensorboardX."""
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self.folder, self.summary, self.event, self.flushed = folder, summary, event_pb2.Event, -math.inf
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.file = event_file_writer.EventsWriter(str(folder / "events"))
        self._write(self.event(step=first_step, wall_time=time.time(), session_log=start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        found = (self.summary.scalar(name, value) for name, value in values.items())
        self._write(*(self.event(step=step, wall_time=time.time(), summary=one) for one in found))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        found = self.summary.image(name, image, dataformats="HWC")
        self._write(self.event(step=step, wall_time=time.time(), summary=found))

    def _write(self, *events) -> None:
        with files.writing(self.folder):
            for event in events:
                self.file.write_event(event)
            if time.monotonic() - self.flushed > EVERY:
                self.file.flush()
                self.flushed = time.monotonic()

    def close(self) -> None:
        with files.writing(self.folder):
            if self.file:
                file, self.file = self.file, None
                file.close()


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
    with files.reaching(wanted):
        return any(wanted.parent.glob(wanted.name))


def has_numbers(workdir: str | Path, step: int, prefix: str) -> bool:
    """Whether metrics.jsonl has numbers of that step whose names begin so."""
    lines = _lines(files.at(workdir) / "metrics.jsonl")
    return any(_step_of(line) == step and f'"{prefix}' in line for line in lines)


def _lines(path: Path) -> list[str]:
    """[] without the file. Bytes that are no text are replaced."""
    try:
        with files.opened(path) as file:
            return file.read().decode(errors="replace").removesuffix("\n").split("\n")
    except FileNotFoundError:
        return []


def _step_of(line: str) -> int | None:
    """None for a line that is cut short or damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if type(step) is int and "\ufffd" not in line else None


def headline(values: dict[str, float], order: tuple[str, ...]) -> str:
    """`loss 0.1234 ...`: the named values that are there, in this order."""
    return "  ".join(f"{k} {_short(values[k])}" for k in order if k in values)


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
