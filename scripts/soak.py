"""Ends training runs at random moments, damages what they have written, and compares how they end.

    python scripts/soak.py --kills=60        # one process, changing numbers of devices, two processes, in turns

A tiny diffusion model is trained to its last step, uninterrupted. Then runs of it are begun again and again, and each
start is ended by SIGKILL, SIGTERM or SIGUSR1 at a random moment: while it imports, compiles, steps, validates, draws or
saves. Between starts a bit of the newest checkpoint is flipped, and some starts meet a disk on which no large file can
be written. When a run comes to its last step, its state must be that of the uninterrupted one, bit for bit (up to
rounding where the number of devices changed), and nothing may be left: no process, no temporary folder, no lock.
"""

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from ldm_jax import checkpoint, process, tree  # noqa: E402
from ldm_jax.cli.options import Parser  # noqa: E402
from ldm_jax.training import stopping  # noqa: E402

STEPS = 24
OPTIONS = [
    "--config=quickstart_ldm:tiny", f"--config.steps={STEPS}", "--config.every.checkpoint=2",
    "--config.every.evaluate=5", "--config.every.picture=7",
    "--config.unet.channel_mult=(1,)", "--config.unet.attention_downsamples=()",
    "--config.optim.schedule=constant", "--config.keep=3", "--config.data.workers=1",
]  # fmt: skip
KINDS = ("one", "devices", "two")  # one process; one with another number of devices at each start; two processes
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
SMALL_FILES = 50_000  # bytes: no file may be larger on the "full disk"
EARLY = 6.0  # seconds in which a start imports and compiles


def start(kind: str, workdir: Path, rng: random.Random, full: bool = False) -> list[subprocess.Popen]:
    """The processes of one start, each the first of its session; what they print is in WORKDIR.log."""
    count = 2 if kind == "two" else 1
    devices = rng.choice((1, 2, 4)) if kind == "devices" else 1
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for host in range(count):
        env = os.environ | {"JAX_PLATFORMS": "cpu", "LDM_JAX_HUGEPAGES": "0"}
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
        several = []
        if count > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(host),
            }
            several = ["--distributed"]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILES, SMALL_FILES))) if full else None
        command = [sys.executable, "train.py", f"--workdir={workdir}", *OPTIONS, *several]
        with log(workdir, host).open("a") as file:
            started.append(subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=limit,
            ))  # fmt: skip
    return started


def log(workdir: Path, host: int = 0) -> Path:
    return workdir.with_name(f"{workdir.name}_{host}.log")


def wait(started: list[subprocess.Popen], seconds: float = 300) -> list[int]:
    """Exit codes. Ends what is still there after so long, which is an error."""
    end = time.monotonic() + seconds
    try:
        return [p.wait(timeout=max(end - time.monotonic(), 0.1)) for p in started]
    finally:
        for p in started:
            if p.poll() is None:
                p.kill()
                p.wait()


def left_over(started: list[subprocess.Popen]) -> list[int]:
    """Sessions of which a process still lives 10 s after the first one's end."""
    end = time.monotonic() + 10
    while True:
        alive = [p.pid for p in started if _lives(p.pid)]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.1)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def interrupt(started: list[subprocess.Popen], workdir: Path, rng: random.Random) -> tuple[str, str]:
    """Waits for a random moment and sends a signal: (signal's name, the last line that was printed before)."""
    seen = len(log(workdir).read_text())
    if rng.random() < 0.3:  # while it imports and compiles
        time.sleep(rng.uniform(0, EARLY))
    else:  # some steps later, at any moment of what then happens
        wanted, end = rng.randint(1, 8), time.monotonic() + 120
        while log(workdir).read_text()[seen:].count("\nstep ") < wanted and time.monotonic() < end:
            if any(p.poll() is not None for p in started):
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
    number = rng.choice(SIGNALS)
    lines = [line for line in log(workdir).read_text()[seen:].splitlines() if line.strip()]
    # A killed host leaves the others waiting for a minute: all of them are killed. Any other signal reaches one.
    for p in started if number == signal.SIGKILL else rng.sample(started, 1):
        if p.poll() is None:
            p.send_signal(number)
    return number.name, phase(lines[-1] if lines else "")


def phase(line: str) -> str:
    """What a run does after it has printed this line, in a word."""
    for words, name in (
        ("train step compiled", "first step"), ("validation (", "after validation"), (f"step {STEPS}/", "last step"),
        ("step ", "steps"), ("parameters", "compiling"), ("resumed", "compiling"), ("images", "start"),
    ):  # fmt: skip
        if words in line:
            return name
    return "imports"


def flip_a_bit(workdir: Path, rng: random.Random) -> bool:
    """Of the newest of at least two checkpoints; False if there are fewer."""
    steps = checkpoint.steps(workdir)
    if len(steps) < 2:
        return False
    files = [p for p in (workdir / "checkpoints" / str(steps[-1])).rglob("*") if p.is_file() and p.stat().st_size]
    victim = rng.choice(files)
    data = bytearray(victim.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    victim.write_bytes(data)
    return True


def state(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint, and its step."""
    from ml_collections import ConfigDict

    from ldm_jax.training import setup

    config = ConfigDict(checkpoint.load_config(workdir))
    shapes, _ = setup.abstract_run(config)
    found = setup.restore_parts(config, workdir, tuple(vars(shapes)))
    return {name: np.asarray(x) for name, x in tree.flatten(found.__dict__).items()}


def differences(workdir: Path, reference: Path, exact: bool) -> list[str]:
    """What is not as it must be in a run that has come to its end."""
    ours, theirs = state(workdir), state(reference)
    if ours.keys() != theirs.keys():
        return ["other arrays"]
    same = np.array_equal if exact else lambda a, b: np.allclose(a, b, rtol=1e-3, atol=1e-3)
    bad = [f"{name} differs" for name in ours if not same(ours[name], theirs[name])]
    left = [str(path.relative_to(workdir)) for path in workdir.rglob("*")
            if re.search(r"tmp|\.lock$", path.name)]  # fmt: skip
    return bad + [f"{name} is left" for name in left]


def main(argv: list[str] | None = None) -> int:
    p = Parser(__doc__)
    p.add_argument("--kills", type=int, default=60, help="starts that are ended, default 60")
    p.add_argument("--seed", type=int, default=0, help="of the moments and faults, default 0")
    p.add_argument("--kinds", default=",".join(KINDS), help=f"default {','.join(KINDS)}, in turns")
    args = p.parse_args(argv)
    kinds, rng, told, failed = args.kinds.split(","), random.Random(args.seed), Counter(), []
    process.faster_cpu()
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        folder = Path(folder)
        references = {}
        for kind in sorted({"two" if kind == "two" else "one" for kind in kinds}):
            references[kind] = folder / f"reference_{kind}"
            codes = wait(start(kind, references[kind], rng))
            assert not any(codes), log(references[kind]).read_text()
        kills = number = 0
        while kills < args.kills:
            kind, workdir, done = kinds[number % len(kinds)], folder / f"run_{number}", False
            number += 1
            while not done:
                done, kills = one_start(kind, workdir, rng, args.kills, kills, told, failed)
            wrong = differences(workdir, references["two" if kind == "two" else "one"], kind != "devices")
            told[f"runs ({kind})"] += 1
            failed += [f"{workdir.name} ({kind}): {text}" for text in wrong]
            print(
                f"{workdir.name} ({kind}): {'; '.join(wrong) or 'ends as the uninterrupted run'}; {kills} kills",
                flush=True,
            )
        if failed:
            print("\n".join(log(folder / f"run_{i}").read_text()[-3000:] for i in range(number)), flush=True)
    print("\n".join(f"{count:5} {name}" for name, count in sorted(told.items())))
    print("\n".join(failed) or "nothing was wrong", flush=True)
    return 1 if failed else 0


def one_start(
    kind: str, workdir: Path, rng: random.Random, most: int, kills: int, told: Counter, failed: list[str]
) -> tuple[bool, int]:
    """(the run has come to its end, kills until now): one start, ended at a random moment if there are kills left."""
    if kills < most and kind != "two" and rng.random() < 0.15 and flip_a_bit(workdir, rng):
        told["flipped bits"] += 1
    full = kills < most and rng.random() < 0.1
    log(workdir).touch()
    started = start(kind, workdir, rng, full)
    if full:
        told["full disks"] += 1
    allowed = {0}
    if kills < most:
        name, when = interrupt(started, workdir, rng)
        kills += 1
        told[f"{name} at {when}"] += 1
        # Before Python runs, a signal ends the process as it ends any other.
        number = getattr(signal, name)
        allowed |= {-number} if number == signal.SIGKILL else {stopping.AGAIN, -number}
    if full:
        allowed |= {1, 2}
    codes = wait(started)
    if not set(codes) <= allowed:
        failed.append(f"{workdir.name}: exit codes {codes}, allowed {sorted(allowed)}")
    failed += [f"{workdir.name}: process {pid} still lives" for pid in left_over(started)]
    ended = not any(codes) and checkpoint.steps(workdir)[-1:] == [STEPS]
    return ended or len(failed) > 5, kills


if __name__ == "__main__":
    sys.exit(main())
