"""The restart with memory in large pages: real processes, in the shape of a checkout with one small script. Flags."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jaxlib.version
import pytest

from ldm_jax import process

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import os, sys
from ldm_jax import process
print("starting", os.getpid(), flush=True)
process.restart_with_hugepages()
print("at work", os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], "jax" in sys.modules)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the restart is for Linux alone")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    (root / "ldm_jax").mkdir()
    for name in ("errors.py", "process.py"):
        shutil.copy(ROOT / "ldm_jax" / name, root / "ldm_jax" / name)
    for name in ("train.py", "other.py", "benchmarks/step.py", "bin/ldm-train"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(SCRIPT)
    (root / "imports.py").write_text("import train")
    (root / "runs.py").write_text("import runpy; runpy.run_path('train.py', run_name='__main__')")
    (root / "acts.py").write_text("import sys; sys.argv = ['train.py']; import runpy; runpy.run_path('train.py')")
    return root


def run(checkout: Path, *command: str, **variables: str) -> tuple[int, str, str]:
    """(number of beginnings, what the work sees, standard error)"""
    env = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LDM_JAX_HUGEPAGES")}
    env |= {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, *command]
    result = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=True, input="c\nq\n")
    lines = result.stdout.splitlines()
    starts = [line for line in lines if "starting " in line]
    work = next(line for line in lines if line.startswith("at work "))
    number, seen = work.removeprefix("at work ").split(" ", 1)
    assert {start.split("starting ")[1] for start in starts} == {number}
    return len(starts), seen, result.stderr


@pytest.mark.parametrize("script", [("train.py",), ("-u", "train.py"), ("benchmarks/step.py",), ("bin/ldm-train",)])
def test_starts_anew_once_with_its_arguments_and_says_so(checkout, script):
    starts, seen, told = run(checkout, *script, "--a=b c", "d")
    assert (starts, seen) == (2, "glibc.malloc.hugetlb=1 ['--a=b c', 'd'] False")
    assert len(told.splitlines()) == 1 and "LDM_JAX_HUGEPAGES=0" in told and Path(script[-1]).name in told


def test_other_tunables_stay(checkout):
    starts, seen, _ = run(checkout, "train.py", GLIBC_TUNABLES="glibc.malloc.check=0")
    assert starts == 2 and seen.startswith("glibc.malloc.check=0:glibc.malloc.hugetlb=1 ")


@pytest.mark.parametrize(
    "variables, seen", [({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc"), ({"LDM_JAX_HUGEPAGES": "0"}, "None")]
)
def test_can_be_turned_off(checkout, variables, seen):
    starts, work, told = run(checkout, "train.py", **variables)
    assert starts == 1 and work.startswith(seen) and not told


@pytest.mark.parametrize(
    "command",
    [
        ("other.py",),
        ("imports.py",),
        ("runs.py",),
        ("acts.py",),
        ("-m", "train"),
        ("-c", "import train"),
        ("-c", "import sys; sys.argv = ['train.py']; exec(open('train.py').read())"),
        ("-i", "train.py"),
        ("-m", "pdb", "train.py"),
        ("-m", "trace", "--count", "--coverdir=.", "train.py"),
        ("-m", "cProfile", "train.py"),
        ("-m", "runpy", "train"),
    ],
    ids=" ".join,
)
def test_leaves_other_programs_alone(checkout, command):
    starts, seen, told = run(checkout, *command)
    assert starts == 1 and seen.startswith("None ") and "anew" not in told


@pytest.mark.parametrize("trace", ["sys.settrace(lambda *_: None)", "sys.setprofile(lambda *_: None)"])
def test_leaves_a_traced_process_alone(checkout, tmp_path, trace):
    """As coverage does in the processes that a measured program starts."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{trace}\n")
    assert run(checkout, "train.py", PYTHONPATH=f"{checkout}:{tmp_path}")[0] == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is of Python 3.12")
def test_leaves_a_monitored_process_alone(checkout, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.monitoring.use_tool_id(1, 'coverage')\n")
    assert run(checkout, "train.py", PYTHONPATH=f"{checkout}:{tmp_path}")[0] == 1


@pytest.fixture
def installed(monkeypatch):
    """Says which packages there are, and begins without flags."""
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(process, "GPU_FLAGS", {jaxlib.version.__version__: "--of_gpus=true"})
    monkeypatch.setattr(process, "TPU_FLAGS", {"9.9": ("--first=1", "--second=2")})
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    there = set()
    monkeypatch.setattr(process, "find_spec", lambda name: name in there or None)
    return there


def flags_set():
    process.faster_accelerators()
    return os.environ.get("XLA_FLAGS", ""), os.environ.get("LIBTPU_INIT_ARGS", "")


def test_flags_are_those_of_what_is_installed(installed):
    assert flags_set() == ("", "")
    installed.add("jax_cuda13_plugin")
    assert flags_set() == ("--of_gpus=true", "")
    installed.add("libtpu")
    assert flags_set() == flags_set() == ("--of_gpus=true", "--first=1 --second=2")


def test_flags_of_the_user_stay(installed, monkeypatch):
    installed |= {"jax_cuda12_plugin", "libtpu"}
    monkeypatch.setenv("XLA_FLAGS", "--of_gpus=false")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--second=3")
    assert flags_set() == ("--of_gpus=false", "--second=3 --first=1")


def test_no_flags_for_versions_that_were_not_seen_or_where_the_cpu_is_asked_for(installed, monkeypatch):
    installed |= {"jax_cuda12_plugin", "libtpu"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert flags_set() == ("", "")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(process, "GPU_FLAGS", {"0.0.1": "--unknown=1"})
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    assert flags_set() == ("", "")


def test_an_entry_of_the_compilation_cache_that_a_kill_has_cut_is_written_again(tmp_path):
    code = (
        "import jax, sys, pathlib, warnings; from ldm_jax import process; process.setup(); process.setup()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)\n"
        "def compile(): jax.jit(lambda x: x * 3 + 1).lower(1.0).compile()\n"
        "compile(); (entry,) = pathlib.Path(sys.argv[1]).iterdir(); whole = entry.read_bytes()\n"
        "entry.write_bytes(whole[:-40]); jax.clear_caches(); compile()\n"
        "assert entry.stat().st_size > len(whole) - 40, entry.stat()\n"
        "assert [path.name for path in entry.parent.iterdir()] == [entry.name]\n"
        "warnings.simplefilter('error'); jax.clear_caches(); compile()"
    )
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
