"""Compiling in a hurry, for programs that run once or twice: compiling them costs more than running them.

Results stay within float32 round-off.
"""

from collections.abc import Callable

import jax
import jaxlib.version

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # options of the compiler
if jaxlib.version.__version_info__ < (0, 11):  # later ones do not have it, and end at a flag that they do not know
    QUICK["xla_cpu_use_fusion_emitters"] = False  # the older way to make kernels takes about half the time to compile


def flags(*further: str) -> str:
    """XLA_FLAGS of a process that compiles in a hurry."""
    return " ".join([*further, *(f"--{name}={str(value).lower()}" for name, value in QUICK.items())]).strip()


def compiled(fn: Callable, *args) -> Callable:
    """fn for arguments of the shapes of `args`."""
    return jax.jit(fn).lower(*args).compile(compiler_options=QUICK)
