"""Imports run one way only (docs/architecture.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms from the lowest to the highest: each may import those of the lines above its own. Those of one line do not
# import each other.
PLAN = [
    {"errors", "progress"},
    {"files", "hosts"},
    {"manifest"},
    {"arrays", "tree", "keys", "images", "process", "checkpoint", "config_file", "shipped"},
    {"models", "diffusion", "data"},
    {"losses", "conditions"},
    {"ldm"},
    {"latent_classifier", "generate"},
    {"editing"},
    {"programs", "build", "convert", "recipes"},
    {"evaluation"},
    {"rundir"},
    {"request", "training"},
    {"provenance"},
    {"pipeline"},
    {"report", "web"},
    {"training_metrics"},
    {"cli"},
]
ALLOWED = {name: set().union(*PLAN[:i]) for i, line in enumerate(PLAN) for name in line}


def room(path: Path) -> str:
    return path.relative_to(ROOT / "ldm_jax").with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("ldm_jax.")}


@pytest.mark.parametrize("path", sorted((ROOT / "ldm_jax").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_plan(path):
    if path.parent.name == "ldm_jax" and path.name == "__init__.py":
        used_later = {"errors", "pipeline", "provenance", "request", "images"}
        assert imported_rooms(path) <= used_later
        return
    own = room(path)
    forbidden = imported_rooms(path) - ALLOWED[own] - {own}
    assert not forbidden, f"{path} imports {forbidden}; allowed: {ALLOWED[own]}"


def test_core_needs_jax_flax_optax_numpy_only():
    """Networks, mathematics and the train step import on a machine that has nothing else."""
    code = (
        "import sys\n"
        "import ldm_jax.ldm, ldm_jax.generate, ldm_jax.losses, ldm_jax.training.tasks\n"
        "bad = [m for m in ('tensorflow', 'torch', 'grain', 'clu', 'tensorflow_datasets', 'tensorboardX',\n"
        "                   'transformers') if m in sys.modules]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
