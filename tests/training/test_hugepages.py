"""Scripts start anew once, with glibc asked for large pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, sys
from ldm_jax.training.hugepages import restart_with_hugepages
print("starting", os.getpid(), flush=True)
restart_with_hugepages()
print("at work", os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], "jax" in sys.modules)
"""


def run(tmp_path: Path, **variables: str) -> tuple[list[str], str]:
    """(process numbers of each beginning, what the work sees)"""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, script, "--a=b c", "d"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    *starts, work = result.stdout.splitlines()
    process, seen = work.removeprefix("at work ").split(" ", 1)
    assert {start.removeprefix("starting ") for start in starts} == {process}
    return starts, seen


@pytest.mark.skipif(sys.platform != "linux", reason="the restart is for Linux alone")
def test_a_cpu_process_starts_anew_once_with_its_arguments(tmp_path):
    starts, seen = run(tmp_path, JAX_PLATFORMS="cpu")
    assert len(starts) == 2
    assert seen == "glibc.malloc.hugetlb=1 ['--a=b c', 'd'] False"


@pytest.mark.skipif(sys.platform != "linux", reason="the restart is for Linux alone")
def test_other_tunables_stay(tmp_path):
    starts, seen = run(tmp_path, JAX_PLATFORMS="cpu", GLIBC_TUNABLES="glibc.malloc.check=0")
    assert len(starts) == 2
    assert seen.startswith("glibc.malloc.check=0:glibc.malloc.hugetlb=1 ")


def test_a_choice_that_was_made_stays(tmp_path):
    starts, seen = run(tmp_path, JAX_PLATFORMS="cpu", GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert len(starts) == 1
    assert seen.startswith("glibc.malloc.hugetlb=0 ")
