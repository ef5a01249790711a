"""The notebooks: their cells run, their outputs are small and say nothing of the machine that made them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import run_notebooks

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOCAL = re.compile(r"(?<![\w.:/])/[\w.-]+/|site-packages|[A-Z]:\\\\")  # an absolute path


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_there_are_three_and_pages_link_them():
    assert {path.name for path in NOTEBOOKS} == {"first_pictures.ipynb", "your_own_folder.ipynb", "edit.ipynb"}
    for page in ("README.md", "docs/python.md"):
        assert all(f"notebooks/{path.name}" in (ROOT / page).read_text() for path in NOTEBOOKS), page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole_and_small(path):
    """Every cell was run, in order, without an error; its pictures are in the file; its links exist."""
    assert path.stat().st_size < 300_000
    assert [cell["execution_count"] for cell in cells(path)] == list(range(1, len(cells(path)) + 1))
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    for cell in cells(path, "markdown"):
        for link in re.findall(r"\]\(([^)#:]+)", "".join(cell["source"])):
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_name_no_local_path(path):
    for cell in cells(path):
        for output in cell["outputs"]:
            texts = [output.get("text", ""), *(t for kind, t in output.get("data", {}).items() if "image" not in kind)]
            assert not [found for text in texts if (found := LOCAL.search("".join(text)))]


@pytest.mark.parametrize("text", ["in /tmp/abc/x", '"/home/me/a.py"', "/a-folder/b", "lib/x/site-packages/jax"])
def test_local_paths_are_seen(text):
    assert LOCAL.search(text) and not LOCAL.search("runs/tmp/a, ../data/b, https://x.org/home/me, 3/images, 4 images/s")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_run(path):
    command = [sys.executable, "scripts/run_notebooks.py", "--check", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"{path}: "), done.stdout + done.stderr


CELLS = ("print('a')\nprint('b')\nx = 3", "x + 1", "import PIL.Image\nPIL.Image.new('L', (2, 2))", "x / 0")


def test_a_cell_shows_what_it_prints_and_its_last_value(tmp_path):
    notebook = [{"cell_type": "code", "source": [text], "outputs": []} for text in CELLS]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": notebook[:3]}))
    made = [cell["outputs"] for cell in run_notebooks.run(tmp_path / "a.ipynb")["cells"]]
    assert made[0] == [{"name": "stdout", "output_type": "stream", "text": ["a\n", "b\n"]}]
    assert made[1][0]["data"] == {"text/plain": ["4"]} and list(made[2][0]["data"]) == ["image/png", "text/plain"]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": notebook}))
    with pytest.raises(ZeroDivisionError):
        run_notebooks.run(tmp_path / "a.ipynb")
