"""Ends training runs at random moments, harms what they have written, and compares how they end.

    python scripts/soak.py                # 100 kills: make soak
    python scripts/soak.py --kills=10     # the short form

A tiny diffusion model is trained to its last step, uninterrupted: by one process, and by two. Then runs of it are begun
again and again: by one process, by one process with another number of devices at each start, and by two processes, with
data workers. Each start is ended by SIGKILL, SIGTERM or SIGUSR1 at a random moment of a phase: start-up, preparing,
compiling, step, save, evaluation, pictures. In each run a bit of the newest checkpoint is flipped once, and one start
meets a full disk. When a run comes to its last step, its arrays, its metrics.jsonl and its pictures must be those of
the uninterrupted run, bit for bit (where the number of devices changed: to 1e-5), and nothing may be left: no process,
no temporary file, no lock. The exit code is 1 if something was wrong.
"""

import datetime
import itertools
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from ldm_jax import checkpoint, config_file, tree  # noqa: E402
from ldm_jax.cli.options import Parser  # noqa: E402
from ldm_jax.training import stopping  # noqa: E402
from tests.fast import flags  # noqa: E402
from tests.several_hosts import of_hosts  # noqa: E402

EVERY = {"checkpoint": 3, "evaluate": 5, "picture": 7}
OPTIONS = [
    "--config=demo_class:tiny", "--config.network.kind=dit", "--config.keep=3", "--config.data.workers=1",
    *(f"--config.every.{name}={steps}" for name, steps in EVERY.items()),
    # Adam divides by the gradients' size; a larger eps keeps it from making much of their rounding.
    "--config.optim.schedule=constant", "--config.optim.eps=1e-3",
]  # fmt: skip
TURNS = ("one", "devices", "two", "one", "devices")  # which kind of run comes after which
DEVICES = (1, 2, 4)
PHASES = ("start-up", "preparing", "compiling", "step", "save", "evaluation", "pictures")
ONCE = PHASES[:3]  # in each start
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
LOST = (stopping.AGAIN, -signal.SIGABRT)  # exit codes of a host whose other host was killed
WITHIN = 1e-5  # of numbers where the number of devices changed
DISK = 2**28  # bytes of the small disk
LEFT_FREE = 200_000  # bytes of the full disk: enough for lines, not for a checkpoint
HANG = 900  # seconds after which a start that does not end hangs
MEASURED = ("time", "images_per_second", "data_wait", "goodput")  # in metrics.jsonl, other ones each time


@dataclass
class Start:
    """Processes that were begun together, each the first of its group. What host k prints is in logs[k]."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    @property
    def lines(self) -> list[str]:
        """What the first host has printed."""
        return self.logs[0].read_text(errors="replace").splitlines()

    @property
    def runs(self) -> bool:
        return all(p.poll() is None for p in self.processes)

    def codes(self) -> list[int]:
        """Waits for the end. subprocess.TimeoutExpired, and an end, for what does not end by itself."""
        until = time.monotonic() + HANG
        try:
            return [p.wait(timeout=max(until - time.monotonic(), 0.1)) for p in self.processes]
        finally:
            self.end()

    def end(self) -> None:
        for p in self.processes:
            if p.poll() is None:
                p.kill()
                p.wait()

    def alive(self, seconds: float = 60) -> list[int]:
        """Groups of which a process still lives so long after the first one's end."""
        until = time.monotonic() + seconds
        while (left := [p.pid for p in self.processes if _lives(p.pid)]) and time.monotonic() < until:
            time.sleep(0.1)
        return left


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Soak:
    """All that the runs have in common, and what was counted."""

    folder: Path  # logs, the cache of compiled programs, temporary files
    disk: Path  # run directories
    mounted: bool  # whether `disk` is a small disk of its own
    steps: int
    rng: random.Random
    kills: int
    until: float  # time.monotonic() after which nothing is killed any more
    told: Counter = field(default_factory=Counter)
    pairs: Counter = field(default_factory=Counter)  # (phase, signal) of the kills
    failed: list[str] = field(default_factory=list)
    starts: int = 0
    largest: float = 0.0  # difference of numbers where the number of devices changed
    lasts: Counter = field(default_factory=Counter)  # seconds of each phase in an uninterrupted run

    def __post_init__(self):
        self.moments = _deck(self.rng)
        (self.folder / "tmp").mkdir()

    @property
    def goes_on(self) -> bool:
        return self.pairs.total() < self.kills and time.monotonic() < self.until and len(self.failed) < 5

    def start(self, kind: str, workdir: Path, devices: int = 1, limit: Callable | None = None) -> Start:
        self.starts += 1
        hosts = of_hosts(2) if kind == "two" else [{}]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu", "LDM_JAX_HUGEPAGES": "0", "PYTHONUNBUFFERED": "1", "TMPDIR": f"{self.folder}/tmp",
            "XLA_FLAGS": flags(f"--xla_force_host_platform_device_count={devices}"),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{self.folder}/xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        command = [sys.executable, "train.py", f"--workdir={workdir}", f"--config.steps={self.steps}", *OPTIONS]
        if len(hosts) > 1:
            command += ["--distributed", "--host-timeout=20"]
        started = Start([], [self.folder / f"{workdir.name}_{self.starts}_{host}.log" for host in range(len(hosts))])
        for variables, log in zip(hosts, started.logs):
            with log.open("w") as file:
                started.processes.append(subprocess.Popen(
                    command, cwd=ROOT, env=env | variables, stdout=file, stderr=subprocess.STDOUT,
                    process_group=0, preexec_fn=limit,
                ))  # fmt: skip
        return started

    def reference(self, kind: str) -> Path:
        workdir = self.disk / f"reference_{kind}"
        started, before = self.start(kind, workdir), time.monotonic()
        while started.runs:
            time.sleep(0.1)
            now = time.monotonic()
            self.lasts[phase(started.lines, workdir)] += now - before
            before = now
        if any(started.codes()):
            raise RuntimeError("the uninterrupted run has failed:\n" + "\n".join(started.lines[-50:]))
        return workdir

    def run(self, kind: str, workdir: Path, most: int) -> None:
        """One run to its last step, with `most` kills."""
        faults = {"flipped bit": self.rng.randint(1, 3), "full disk": self.rng.randint(1, 3)}  # after so many starts
        before, done, count = self.pairs.total(), False, 0
        while not done and len(self.failed) < 5:
            count += 1
            began, full, devices = time.monotonic(), False, 1
            if kind == "devices":
                devices = self.rng.choice(DEVICES)
                self.told[f"starts on {devices} device{'s' * (devices > 1)}, in runs where that changes"] += 1
            kills = self.goes_on and self.pairs.total() - before < most
            if count > faults.get("full disk", count):
                full = bool(faults.pop("full disk"))
                self.told["full disks"] += 1
            elif count > faults.get("flipped bit", count) and flip_a_bit(workdir, self.rng):
                faults.pop("flipped bit")
                self.told["flipped bits"] += 1
            with self._full_disk() if full else nullcontext() as limit:
                started = self.start(kind, workdir, devices, limit)
                words, allowed = self._kill(started, workdir) if kills and not full else ("no kill", {0})
                if full:
                    words, allowed = "full disk", {2, *((1,) if not self.mounted else ())}
                    allowed |= {1, -signal.SIGABRT} if kind == "two" else set()  # of the host that can write
                try:
                    codes = started.codes()
                except subprocess.TimeoutExpired:
                    self._wrong(started, f"does not end ({words})")
                    return
            if not set(codes) <= allowed:
                self._wrong(started, f"exit codes {codes}, not of {sorted(allowed)} ({words})")
            for group in started.alive():
                self._wrong(started, f"a process of group {group} still lives ({words})")
            steps = checkpoint.steps(workdir)
            done = not any(codes) and steps[-1:] == [self.steps]
            print(
                f"{self.pairs.total():3} kills, start {self.starts} of {workdir.name} ({kind}"
                f"{f', {devices} devices' if kind == 'devices' else ''}): {words}; exit {codes}, newest checkpoint "
                f"{steps[-1] if steps else 'none'} of {self.steps}, {time.monotonic() - began:.0f} s",
                flush=True,
            )

    def _wrong(self, started: Start, text: str) -> None:
        self.failed.append(f"{started.logs[0].stem}: {text}")
        ends = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in started.logs)
        print(f"WRONG {self.failed[-1]}\n{ends}", flush=True)

    def _kill(self, started: Start, workdir: Path) -> tuple[str, set[int]]:
        """Sends a signal at a random moment of the next phase; (words for what was done, allowed exit codes)."""
        wanted, number = next(self.moments)
        while started.runs and phase(started.lines, workdir) != wanted and not _is_past(started.lines, wanted):
            time.sleep(0.01)
        last = _step(started.lines) + self.rng.randint(0, 3)
        while started.runs and wanted == "step" and _step(started.lines) < last:
            time.sleep(0.01)
        time.sleep(self.rng.uniform(0, 0.6 * self.lasts[wanted] if wanted in ONCE else 0.3))
        found, step = phase(started.lines, workdir), _step(started.lines)
        if not started.runs:
            return f"ended before {number.name} in {wanted}", {0}
        everyone = found == "start-up" or (number == signal.SIGKILL and self.rng.random() < 0.5)
        struck = started.processes if everyone else self.rng.sample(started.processes, 1)
        for p in struck:
            p.send_signal(number)
        self.pairs[found, number.name] += 1
        several = len(started.processes) > 1
        of = f" of {'both hosts' if everyone else f'host {started.processes.index(struck[0])}'}" if several else ""
        allowed = {0, -number if number == signal.SIGKILL else stopping.AGAIN}  # 0: it came to its end just then
        if number == signal.SIGKILL and several:
            allowed |= set(LOST)
        if found == "start-up":
            allowed |= {-number}  # before Python listens
        return f"{number.name}{of} in {found}{f' at step {step}' if step else ''}", allowed

    def _full_disk(self):
        """A context in which no checkpoint fits on the disk; its value is what a process begins with."""
        return _filled(self.disk) if self.mounted else nullcontext(_small_files)

    def compare(self, kind: str, workdir: Path, reference: Path) -> None:
        """Adds what is not as it must be in a run that has come to its end."""
        wrong, largest = differences(workdir, reference, 0.0 if kind != "devices" else WITHIN, self.steps)
        self.largest = max(self.largest, largest)
        self.told[f"runs of kind {kind}"] += 1
        self.failed += [f"{workdir.name} ({kind}): {text}" for text in wrong]
        print(f"{workdir.name} ({kind}) {'; '.join(wrong) or 'ends as the uninterrupted run'}", flush=True)


def _deck(rng: random.Random) -> Iterator[tuple[str, signal.Signals]]:
    """Endless pairs of a phase and a signal: all of them, shuffled, then all of them again."""
    while True:
        pairs = list(itertools.product(PHASES, SIGNALS))
        rng.shuffle(pairs)
        yield from pairs


def _small_files() -> None:
    """Of a process, where no disk of its own can be mounted: no file may be larger than LEFT_FREE."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT_FREE, LEFT_FREE))


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """A file that fills the disk up to LEFT_FREE."""
    path = disk / "filler"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - LEFT_FREE)
    try:
        yield
    finally:
        path.unlink()


def _step(lines: list[str]) -> int:
    """The last step that a run has told, 0 before the first."""
    found = [re.match(r"step (\d+)[/ ]", line) for line in lines]
    return max((int(match[1]) for match in found if match), default=0)


def _is_past(lines: list[str], wanted: str) -> bool:
    """Whether a phase that comes once in a start is over."""
    return wanted in ONCE and PHASES.index(phase(lines)) > PHASES.index(wanted)


def phase(lines: list[str], workdir: Path | None = None) -> str:
    """What a run does, of PHASES, told from the lines that it has printed; "save" also where a checkpoint is being
    written beside it."""
    if workdir and any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        return "save"
    found = PHASES[0]
    for line in lines:
        told = re.match(r"step (\d+)(/|  validation| was saved before its work)", line)
        if told:
            step, what = int(told[1]), told[2]
            last = re.match(r"step (\d+)/\1 ", line)
            due = {name: last or step % EVERY[name] == 0 for name in EVERY}
            if what == "/":
                found = "evaluation" if due["evaluate"] else "pictures" if due["picture"] else "step"
            elif what == "  validation":
                found = "pictures" if due["picture"] else "step"
            else:
                found = "evaluation" if "evaluate" in line else "pictures"
        elif line.startswith("planned memory "):  # all programs are compiled
            found = "step"
        elif line.startswith(("training images", "validation images")) or "mesh {" in line:
            found = "preparing"
        elif line.endswith(" parameters") or line.startswith("resumed "):
            found = "compiling"
    return found


def flip_a_bit(workdir: Path, rng: random.Random) -> bool:
    """Of the newest of at least two checkpoints; False if there are fewer."""
    steps = checkpoint.steps(workdir)
    if len(steps) < 2:
        return False
    files = [p for p in (workdir / "checkpoints" / str(steps[-1])).rglob("*") if p.is_file() and p.stat().st_size]
    victim = rng.choice(sorted(files))
    data = bytearray(victim.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    victim.write_bytes(data)
    return True


def differences(workdir: Path, reference: Path, within: float, steps: int) -> tuple[list[str], float]:
    """What is not as it must be in a run that has come to its last step, and the largest difference of a number.

    within: the largest difference that is allowed, relative and absolute. 0: bit for bit."""
    wrong, largest = [], 0.0
    for what, ours, theirs in (
        ("array", arrays(workdir), arrays(reference)),
        ("line of metrics.jsonl", curve(workdir), curve(reference)),
    ):
        wrong += [f"{what} {name}: in one of the two alone" for name in sorted(ours.keys() ^ theirs.keys())]
        for name in sorted(ours.keys() & theirs.keys()):
            a, b = np.asarray(ours[name]), np.asarray(theirs[name])
            if a.shape == b.shape and a.dtype.kind == "f":
                largest = max(largest, float(np.max(np.abs(a - b), initial=0)))
            if not (a.shape == b.shape and np.allclose(a, b, rtol=within, atol=within)):
                wrong.append(f"{what} {name} differs")
    numbers = [line["step"] for line in lines_of(workdir) if "loss" in line]
    if numbers != list(range(1, steps + 1)):
        wrong.append(f"the loss curve has the steps {numbers}")
    numbers = [line["step"] for line in lines_of(workdir) if "val_loss" in line]
    if numbers != due("evaluate", steps):
        wrong.append(f"there is validation of the steps {numbers}")
    ours, theirs = (sorted(path.name for path in (w / "pictures").iterdir()) for w in (workdir, reference))
    if ours != theirs or ours != [f"samples_{step:07d}.png" for step in due("picture", steps)]:
        wrong.append(f"there are the pictures {ours}")
    for name in set(ours) & set(theirs):
        a, b = (np.asarray(Image.open(w / "pictures" / name), int) for w in (workdir, reference))
        if a.shape != b.shape or np.abs(a - b).max() > (within > 0):
            wrong.append(f"picture {name} differs")
    left = [path.relative_to(workdir) for path in workdir.rglob("*") if re.search(r"tmp|\.lock", path.name)]
    return wrong + [f"{path} is left" for path in left], largest


def due(what: str, steps: int) -> list[int]:
    """The steps after which something happens; the last one is among them."""
    return sorted({*range(EVERY[what], steps + 1, EVERY[what]), steps})


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint."""
    from ml_collections import ConfigDict

    from ldm_jax.training import setup

    config = ConfigDict(config_file.load(workdir))
    shapes, _ = setup.abstract_run(config)
    return tree.flatten(vars(setup.restore_parts(config, workdir, tuple(vars(shapes)))))


def lines_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir: Path) -> dict[str, float]:
    """{step and name: number} of metrics.jsonl, but for what is measured with a clock."""
    return {
        f"{line['step']} {name}": value
        for line in lines_of(workdir) for name, value in line.items() if name not in MEASURED
    }  # fmt: skip


def table(soak: Soak, seconds: float) -> str:
    """What was done, as a part of docs/soak.md."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "orbax-checkpoint", "grain"))
    names = [number.name for number in SIGNALS]
    rows = [[name, *(str(soak.pairs[name, number]) for number in names)] for name in PHASES]
    rows.append(["together", *(str(sum(soak.pairs[name, number] for name in PHASES)) for number in names)])
    lines = [
        f"{datetime.date.today():%d %B %Y}: {soak.pairs.total()} kills in {soak.starts} starts, {seconds / 60:.0f} "
        f"minutes on {os.cpu_count()} cores of a CPU ({platform.machine()}), Python {platform.python_version()}, "
        f"{versions}.",
        "",
        f"| phase | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "| what | how many |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in sorted(soak.told.items())),
        *([f"| largest difference where the number of devices changed | {soak.largest:.1g} |"] if soak.largest else []),
        f"| faults found | {len(soak.failed)} |",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    p = Parser(__doc__)
    p.add_argument("--kills", type=int, default=100, help="starts that are ended, default 100")
    p.add_argument("--minutes", type=float, default=1e9, help="after so long nothing is killed any more")
    p.add_argument("--seed", type=int, default=0, help="of the moments and faults, default 0")
    p.add_argument("--turns", default=",".join(TURNS), help=f"kinds of runs, default {','.join(TURNS)}")
    args = p.parse_args(argv)
    os.environ |= {"JAX_PLATFORMS": "cpu"}
    turns, began = args.turns.split(","), time.monotonic()
    each = max(3, args.kills // 10)
    folder = Path(tempfile.mkdtemp(prefix="soak."))
    (disk := folder / "disk").mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "soak", str(disk)], stderr=subprocess.DEVNULL
    ).returncode  # fmt: skip
    try:
        soak = Soak(
            folder, disk, mounted, steps=8 + 5 * each // 2, rng=random.Random(args.seed), kills=args.kills,
            until=began + args.minutes * 60,
        )  # fmt: skip
        references: dict[str, Path] = {}
        for number, kind in enumerate(itertools.cycle(turns)):
            if not soak.goes_on:
                break
            of = "two" if kind == "two" else "one"
            if of not in references:
                references[of] = soak.reference(of)
                print(f"the uninterrupted run of {of}: {time.monotonic() - began:.0f} s", flush=True)
            workdir = disk / f"run_{number}"
            soak.run(kind, workdir, each)
            if checkpoint.steps(workdir)[-1:] == [soak.steps]:
                soak.compare(kind, workdir, references[of])
            shutil.rmtree(workdir)
        left = [path.name for path in (folder / "tmp").iterdir()]
        soak.failed += [f"temporary file {name} is left" for name in left]
        print(table(soak, time.monotonic() - began))
        print("\n".join(soak.failed) or "nothing was wrong", flush=True)
        return 1 if soak.failed else 0
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
