"""What every benchmark shares: options, timing, the record of machine and versions, JSON and tables.

A result file holds {"benchmark", "settings", "environment", "rows"}; a row is flat: strings, numbers, None.
Times are wall-clock seconds of calls that wait for the device.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax import process
from ldm_jax.cli.options import Parser

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "diffusers")
# Variables that change speed.
VARIABLES = (
    *("XLA_FLAGS", "OMP_", "KMP_", "MALLOC_", "GLIBC_", "LD_PRELOAD"),
    *("JAX_", "XLA_PYTHON", "CUDA_VISIBLE", "TORCH"),
)
PAUSE = 0.02  # seconds between turns: the other side's threads spin for some milliseconds after their last work
Row = dict[str, Any]


def run(main: Callable[[], None]) -> None:
    """A script's `__main__`: in large pages as train.py, which serve whatever else runs in this process (PyTorch)."""
    process.restart_with_hugepages()
    main()


def parser(doc: str, config: bool = True, batch: str = "1", repeats: int = 10) -> Parser:
    """The options that all scripts have; `load` reads them. Also makes train.py's settings for CPUs."""
    process.faster_cpu()
    p = Parser(doc)
    if config:
        p.add_argument("--config", required=True, help="recipe, NAME[:VARIANT]; also --config.OPTION=VALUE")
        p.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute type (default: the recipe's)")
    p.add_argument("--batch", type=numbers, default=numbers(batch), help=f"batch sizes, default {batch}")
    p.add_argument("--repeats", type=int, default=repeats, help=f"timed calls, default {repeats}; the median counts")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON, default benchmarks/results")
    return p


def numbers(text: str) -> tuple[int, ...]:
    """ "1,4,16" -> (1, 4, 16)."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers")
    return values


def words(text: str) -> tuple[str, ...]:
    """ "train,decode" -> ("train", "decode")."""
    return tuple(part for part in text.split(",") if part)


def load(p: Parser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Any]:
    """(arguments, the recipe's ConfigDict with the overrides of the command line). Exits with 2 if either is wrong."""
    args, args.overrides = p.parse_with_overrides(argv)
    config = p.recipe(args.config, args.overrides)
    config.dtype = args.dtype or config.dtype
    return args, config


def alternate(runs: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each run, called in turns: what disturbs the machine disturbs all of them alike.

    Every run must wait until its work is done. Each turn begins with another run. `warmup` turns are not timed, nor is
    the first of each run's two calls in a turn: steps follow steps in real work, and memory that was given back while
    the other side had its turn may be slow to come again (3 s for the 2 GB of a training step where a virtual machine
    returns free memory to its host).
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for i in range(-warmup, repeats):
        for name in order[i % len(order) :] + order[: i % len(order)]:
            time.sleep(PAUSE)
            if len(order) > 1:
                runs[name]()
            seconds, _ = timed(runs[name])
            if i >= 0:
                times[name].append(seconds)
    return times


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of one call."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def spread(times: Sequence[float]) -> Row:
    """Median and the 10th and 90th percentile in milliseconds."""
    low, middle, high = np.percentile(times, (10, 50, 90)) * 1e3
    return {"ms": float(middle), "ms_10": float(low), "ms_90": float(high), "calls": len(times)}


def out_of_memory(error: BaseException) -> bool:
    """Whether either side says that its device's memory is full."""
    text = f"{type(error).__name__} {error}".lower()
    signs = "out of memory", "outofmemory", "resource_exhausted", "allocate memory", "to allocate", "alloc_failed"
    return any(sign in text for sign in signs)


def free_gib() -> float | None:
    """Memory of this machine that can be had without swapping; None where Linux' /proc does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:")), None)


def peak_gib(device: Any) -> float | None:
    """The most memory that this process has held on a device so far, trials of the compiler included; None where the
    backend does not say (CPUs)."""
    stats = device.memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


def environment() -> Row:
    """Machine, versions, commit, date and what else ran (load average: processes that want a core)."""
    import jax

    installed = {d.name for d in metadata.distributions()}
    device, load, cores = jax.devices()[0], os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > 0.5 * cores:
        print(f"note: other work is running here (load average {load:.1f} on {cores} cores)", flush=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "backend": jax.default_backend(),
        "device": _cpu() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cpu": _cpu(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(load, 2),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES if name in installed},
        "variables": {k: v for k, v in sorted(os.environ.items()) if _changes_speed(k)},
    }


def _changes_speed(variable: str) -> bool:
    return variable.startswith(VARIABLES) and not variable.endswith("_DIR")  # folders of this machine say nothing


def _cpu() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def save(args: argparse.Namespace, benchmark: str, rows: list[Row], env: Row, dtype: str = "float32", **more) -> Path:
    """Writes the JSON and says where; `env` was taken before the first measurement."""
    recipe_name = getattr(args, "config", "").replace(".py", "").replace(":", "-").split("/")[-1]
    parts = (benchmark, recipe_name, env["backend"], dtype)
    path = args.out / ("_".join(part for part in parts if part) + ".json")
    settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)} | {"dtype": dtype}
    env = env | {"load_average_after": round(os.getloadavg()[0], 2)}
    record = {"benchmark": benchmark, "settings": settings, "environment": env, "rows": rows, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{path}")
    return path


def table(rows: Sequence[Row], columns: Mapping[str, str] | Sequence[str] | None = None) -> str:
    """A markdown table, aligned for the screen too. columns: {key of a row: title}, by default all that a row has.

    Columns that no row has are left out.
    """
    if not rows:
        return "(nothing)"
    found = dict.fromkeys(key for row in rows for key in row)
    titles = dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns or found}
    titles = {key: title for key, title in titles.items() if key in found}
    lines = [list(titles.values()), *([shown(row.get(key)) for key in titles] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths)) + " |" for line in lines)


def shown(value: Any) -> str:
    """Numbers to three digits, None as a dash."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else (
        f"{value:,.0f}" if isinstance(value, float) else str(value)
    )  # fmt: skip
