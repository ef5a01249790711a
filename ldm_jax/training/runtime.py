"""Process-wide JAX settings that a script makes once, before the first computation; a program's planned memory."""

import os
from pathlib import Path

import jax
import jaxlib.version

# Of this version XLA's default path for convolutions and products on CPUs (YNNPACK fusions) is slower than its older
# one. Only for versions where that was seen: XLA refuses to start with a flag that it does not know.
CPU_FLAGS = {"0.10.2": "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution,-individual_dot"}


def setup(require_accelerator: bool = False) -> None:
    """Persistent compilation cache; on CPUs also the faster of XLA's two ways to convolve. Call it before the first
    computation.

    The cache is ~/.cache/ldm_jax/xla, or JAX_COMPILATION_CACHE_DIR. Raises RuntimeError without an accelerator
    if one is required (a broken CUDA plugin makes JAX fall back to the CPU with a warning that is easily missed),
    ValueError on one of several hosts that do not know of each other.
    """
    faster_cpu()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "ldm_jax" / "xla"))
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(f"this is one of {jax.process_count()} hosts: give train.py --distributed on each")
    if require_accelerator and jax.default_backend() == "cpu":
        raise RuntimeError("JAX finds only the CPU. Is the jax[cuda12] or jax[tpu] plugin installed and working?")


def join_hosts() -> None:
    """Makes this process one of several: afterwards `jax.devices()` are those of all. Before the first computation.

    TPU pods, Slurm and Open MPI are recognised; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say who takes part. Raises ValueError when that cannot be told.
    """
    number, own = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=int(number) if number else None, process_id=int(own) if own else None
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--distributed: {error} Neither a TPU pod nor Slurm nor Open MPI was found; set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT (of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID (0, 1, ...)"
        ) from error


def faster_cpu() -> None:
    """The part of `setup` that makes CPUs faster."""
    flag = CPU_FLAGS.get(jaxlib.version.__version__, "")
    given = os.environ.get("XLA_FLAGS", "")
    if flag and flag.split("=")[0] not in given:
        os.environ["XLA_FLAGS"] = f"{given} {flag}".strip()


def planned_gib(compiled: jax.stages.Compiled) -> tuple[float, float] | None:
    """(arguments and results, donated ones once; temporaries) on one device, as the compiler plans them. None where
    the backend does not say."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held / 2**30, plan.temp_size_in_bytes / 2**30
