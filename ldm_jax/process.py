"""Settings of the process, made once before the first computation; a program's planned memory.

Nothing slow is imported at the top: scripts call `restart_with_hugepages` first of all.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ldm_jax.errors import ConfigError, Missing

if TYPE_CHECKING:
    import jax

JOIN = 300.0  # seconds that hosts wait for each other
CACHES = Path.home() / ".cache" / "ldm_jax"

# Of this version XLA's default path for convolutions and products on CPUs (YNNPACK fusions) is slower than its older
# one. Only for versions where that was seen: XLA refuses to start with a flag that it does not know.
CPU_FLAGS = {"0.10.2": "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot"}

# Of GPUs: they send while they compute. Of TPUs: the sums of gradients are sent beside the backward pass that makes the
# next ones. Only for versions that know the flags, as above.
GPU_FLAGS = {v: "--xla_gpu_enable_latency_hiding_scheduler=true" for v in ("0.10.2", "0.12.0.1")}
TPU_FLAGS = {
    "0.0.42.1": (
        "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
        "--xla_tpu_data_parallel_opt_different_sized_ops=true",
    )
}

# By default glibc maps a step's temporary arrays anew in each step and gives them back, and every 4 KiB of them fault
# at first use: up to half of a training step. With this, Linux is asked for pages of 2 MiB. glibc reads it when a
# process begins and at no other time. (Its mallopt can keep memory instead, but only in one heap for all threads;
# their waiting for it cost more than the faults, once the compiler had left that heap in pieces.)
VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
SWITCH = "LDM_JAX_HUGEPAGES"

# What may start anew: these scripts of a checkout, all benchmarks, and the commands that an installation makes.
SCRIPTS = ("train.py", "sample.py", "evaluate.py", "web.py", "scripts/check_quickstart.py")
COMMANDS = ("ldm-train", "ldm-sample", "ldm-evaluate", "ldm-web")
# Options of the interpreter that such a start may have.
_OPTIONS = {"-u", "-B", "-E", "-I", "-s", "-O"}


def restart_with_hugepages() -> None:
    """Starts this process anew with memory in large pages: same command, same process number. Says so.

    Only where it helps (Linux, the CPU alone) and harms nothing: the process was started as `python train.py ...` or
    `ldm-train ...`, and nothing traces it. A program that imports this package is left alone, so is one that runs a
    script by `%run`, `runpy`, `-m` or `-c`. LDM_JAX_HUGEPAGES=0 turns it off; a hugetlb in GLIBC_TUNABLES is kept.
    """
    given = os.environ.get(VARIABLE, "")
    wanted = os.environ.get(SWITCH) != "0" and "hugetlb" not in given
    if sys.platform != "linux" or not wanted or not _is_our_script() or _is_traced() or not _cpu_alone():
        return
    name = Path(sys.argv[0]).name
    print(f"{name}: starts anew with memory in large pages, faster on CPUs ({SWITCH}=0 turns it off)", file=sys.stderr)
    sys.stderr.flush()
    os.environ[VARIABLE] = f"{given}:{SETTING}".strip(":")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_our_script() -> bool:
    """Whether the interpreter was given one of our scripts, which is what runs now."""
    options, arguments = sys.orig_argv[1 : -len(sys.argv)], sys.orig_argv[-len(sys.argv) :]
    main = getattr(sys.modules["__main__"], "__file__", None)
    if not set(options) <= _OPTIONS or arguments != sys.argv or main is None:
        return False
    script, root = Path(arguments[0]).resolve(), Path(__file__).resolve().parents[1]
    ours = script.parent == root / "benchmarks" or script in [root / name for name in SCRIPTS]
    return Path(main).resolve() == script and (ours or script.name in COMMANDS)


def _is_traced() -> bool:
    """Whether a debugger, a profiler or a measure of coverage is at work."""
    monitoring = getattr(sys, "monitoring", None)  # of Python 3.12
    tools = monitoring and any(monitoring.get_tool(number) for number in range(6))
    return bool(sys.gettrace() or sys.getprofile() or tools)


def _cpu_alone() -> bool:
    """Whether JAX has the CPU alone, said without importing it."""
    accelerators = any(find_spec(name) for name in ("jax_plugins", "libtpu"))
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not accelerators


def setup(require_accelerator: bool = False, matmul_precision: str = "default") -> None:
    """Persistent compilation cache; on CPUs also the faster of XLA's two ways to convolve. Call it before the first
    computation. matmul_precision: of float32 products, "default" (the device's), "high" or "highest".

    The cache is ~/.cache/ldm_jax/xla, or JAX_COMPILATION_CACHE_DIR. Raises Missing without an accelerator if one is
    required (a broken CUDA plugin makes JAX fall back to the CPU with a warning that is easily missed), ConfigError
    on one of several hosts that do not know of each other.
    """
    import jax

    faster_cpu()
    faster_accelerators()
    _whole_cache_entries()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(CACHES / "xla"))
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ConfigError(f"this is one of {jax.process_count()} hosts: give --distributed on each")
    if matmul_precision not in ("default", "high", "highest"):
        raise ConfigError(f"config.matmul_precision={matmul_precision!r} is not one of default, high, highest")
    jax.config.update("jax_default_matmul_precision", None if matmul_precision == "default" else matmul_precision)
    if require_accelerator and jax.default_backend() == "cpu":
        raise Missing("an accelerator: JAX finds only the CPU. Is the jax[cuda12] or jax[tpu] plugin installed and "
                      "working?")  # fmt: skip


def _whole_cache_entries() -> None:
    """From now on entries of the compilation cache appear when they are complete, and replace those that were there.

    JAX writes an entry in place, and never again. One that a kill has cut cannot be read: without this, its program
    would be compiled at each start.
    """
    from jax._src import lru_cache  # JAX has no public name for it

    put = lru_cache.LRUCache.put

    def put_whole(self, key: str, value: bytes) -> None:
        if self.eviction_enabled or "://" in str(self.path):
            put(self, key, value)
            return
        entry = Path(str(self.path)) / f"{key}{lru_cache._CACHE_SUFFIX}"
        temporary = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(value)
            os.replace(temporary, entry)
        finally:
            temporary.unlink(missing_ok=True)

    if put.__name__ != put_whole.__name__:
        lru_cache.LRUCache.put = put_whole


def _end(told: str) -> None:
    print(told, file=sys.stderr, flush=True)
    os._exit(1)


def join_hosts(silent: float = 0.0, wait: float = JOIN, late: Callable[[str], object] = _end) -> None:
    """Makes this process one of several: afterwards `jax.devices()` are those of all. Before the first computation.

    silent: seconds after which the caller itself ends a host that has lost another one, which JAX does not do earlier.
    wait: seconds for all to join; then `late` is called, from another thread, with what to say. It ends the process, as
    JAX would do a little later, without a word on the hosts.
    TPU pods, Slurm and Open MPI are recognised; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say who takes part. Raises ConfigError when neither says who takes part.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from the process, and swallow it
    number, own = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    told = (
        f"--distributed: not all hosts of this run{f' ({number})' if number else ''} have joined within {wait:g} s"
        f"{f'; this is host {own}' if own else ''}. See which one has not started, or does not reach the first one"
        f"{f' at {address}' if (address := os.environ.get('JAX_COORDINATOR_ADDRESS')) else ''}"
    )
    timer = threading.Timer(wait, late, [told])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            num_processes=int(number) if number else None,
            process_id=int(own) if own else None,
            initialization_timeout=round(wait) + 30,
            heartbeat_timeout_seconds=max(100, round(2 * silent)),  # 100 is JAX's own
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"--distributed: {error} Neither a TPU pod nor Slurm nor Open MPI was found; set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT (of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID (0, 1, ...)"
        ) from error
    finally:
        timer.cancel()


def faster_cpu() -> None:
    """The part of `setup` that makes CPUs faster."""
    import jaxlib.version

    _set_flag("XLA_FLAGS", CPU_FLAGS.get(jaxlib.version.__version__, ""))


def faster_accelerators() -> None:
    """Flags of the compilers for several GPUs and for TPUs, where these are used and the user has not set them."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return
    from importlib import metadata

    import jaxlib.version

    if any(find_spec(f"jax_cuda{major}_plugin") for major in (12, 13)):
        _set_flag("XLA_FLAGS", GPU_FLAGS.get(jaxlib.version.__version__, ""))
    if find_spec("libtpu"):
        for flag in TPU_FLAGS.get(metadata.version("libtpu"), ()):
            _set_flag("LIBTPU_INIT_ARGS", flag)


def _set_flag(variable: str, flag: str) -> None:
    """Adds "--name=value" to an environment variable that does not name it yet."""
    given = os.environ.get(variable, "")
    if flag and flag.split("=")[0] not in given:
        os.environ[variable] = f"{given} {flag}".strip()


class Planned(NamedTuple):
    """Bytes of one device that the compiler plans for a program: arguments, results that take no argument's place, and
    temporaries."""

    arguments: int
    results: int
    temporary: int

    @property
    def held(self) -> int:
        """Arguments and results; donated ones count once."""
        return self.arguments + self.results

    @property
    def added(self) -> int:
        """What the program needs beside its arguments."""
        return self.results + self.temporary


def planned(compiled: "jax.stages.Compiled") -> Planned | None:
    """None where the backend does not say, or says 0 of all, as some do of a program from the compilation cache."""
    plan = compiled.memory_analysis()
    if plan is None or not plan.argument_size_in_bytes:
        return None
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Planned(plan.argument_size_in_bytes, results, plan.temp_size_in_bytes)


def planned_gib(compiled: "jax.stages.Compiled") -> tuple[float, float] | None:
    """(held, temporary) of `planned`, in GiB."""
    plan = planned(compiled)
    return None if plan is None else (plan.held / 2**30, plan.temporary / 2**30)


def memory_limit(devices: "Sequence[jax.Device]") -> int | None:
    """Bytes that the smallest of this process's devices has for arrays and programs; None where one does not say."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return None if None in limits else min(limits)
