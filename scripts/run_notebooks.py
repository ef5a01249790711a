"""Runs the cells of notebooks and keeps what they show in the files, as Jupyter does, but without Jupyter.

    python scripts/run_notebooks.py notebooks/*.ipynb
    python scripts/run_notebooks.py --check notebooks/edit.ipynb    (writes nothing)

Each notebook runs in a process and an empty folder of its own. What is printed is kept, and so are the value of a
cell's last line (pictures as PNG) and the figures of matplotlib. An error of a cell ends the command.
"""

import ast
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax.cli.options import Parser

ROOT = Path(__file__).resolve().parents[1]


def outputs_of(source: str, names: dict, number: int) -> list[dict]:
    """Runs a cell in the namespace `names`; its outputs as .ipynb files have them."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        value = None if last is None else eval(compile(last, f"cell {number}", "eval"), names)
    made = [{"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())}] if printed.tell() else []
    made += [{"data": {"image/png": png}, "metadata": {}, "output_type": "display_data"} for png in _figures()]
    if value is not None:
        result = {"data": _shown(value), "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        made.append(result)
    return made


def _shown(value) -> dict:
    """{kind: content} of a value."""
    if hasattr(value, "save") and hasattr(value, "convert"):  # of PIL
        small = value.convert("RGB").quantize(256)  # a third of the bytes
        return {"image/png": _png(lambda file: small.save(file, "PNG", optimize=True)), "text/plain": ["a picture"]}
    return {"text/plain": _lines(repr(value))}


def _figures() -> list[str]:
    """The open figures of matplotlib, which are closed."""
    plt = sys.modules.get("matplotlib.pyplot")
    if plt is None:
        return []
    made = [_png(lambda file, n=n: plt.figure(n).savefig(file, format="png", dpi=72)) for n in plt.get_fignums()]
    plt.close("all")
    return made


def _png(save) -> str:
    file = io.BytesIO()
    save(file)
    return base64.b64encode(file.getvalue()).decode() + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def run(path: Path) -> dict:
    """The notebook with the outputs of all its code cells, which run here."""
    notebook, names, number = json.loads(path.read_text()), {"__name__": "__main__"}, 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell["outputs"] = outputs_of("".join(cell["source"]), names, number)
            cell["execution_count"] = number
    return notebook


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="run them and write nothing")
    parser.add_argument("--here", action="store_true", help="in this process and folder; prints the notebook as JSON")
    args = parser.parse_args()
    if args.here:
        notebook = run(args.notebooks[0])
        print(json.dumps(notebook, indent=1))
        return
    for path in args.notebooks:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            settings = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "TMPDIR": folder}
            command = [sys.executable, str(Path(__file__).resolve()), "--here", str(path.absolute())]
            done = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{path}: a cell has failed\n{done.stderr}")
        if not args.check:
            path.write_text(done.stdout)
        print(f"{path}: {time.perf_counter() - began:.0f} s, {len(done.stdout) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
