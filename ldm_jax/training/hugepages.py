"""Memory in large pages for a process that computes on CPUs. Imports nothing slow: scripts call it first of all."""

import os
import sys
from importlib.util import find_spec

# By default glibc maps a step's temporary arrays anew in each step and gives them back, and every 4 KiB of them fault
# at first use: up to half of a training step. With this, Linux is asked for pages of 2 MiB. glibc reads it when a
# process begins and at no other time. (Its mallopt can keep memory instead, but only in one heap for all threads;
# their waiting for it cost more than the faults, once the compiler had left that heap in pieces.)
VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def restart_with_hugepages() -> None:
    """Starts this process anew, same command and process number, unless that is already so. Only from a script's
    `__main__`, before it does anything.

    Does nothing where it would not help: not Linux, an accelerator's plugin installed (unless JAX_PLATFORMS=cpu), a
    debugger at work. To be left alone, set GLIBC_TUNABLES=glibc.malloc.hugetlb=0.
    """
    given = os.environ.get(VARIABLE, "")
    if sys.platform == "linux" and "hugetlb" not in given and not sys.gettrace() and _cpu_alone():
        os.environ[VARIABLE] = f"{given}:{SETTING}".strip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _cpu_alone() -> bool:
    """Whether JAX has the CPU alone, said without importing it."""
    accelerators = any(find_spec(name) for name in ("jax_plugins", "libtpu"))
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not accelerators
