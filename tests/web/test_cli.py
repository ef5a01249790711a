"""The options of web.py, and what it says without Gradio. The page in a browser: test_page.py."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax import config_file, recipes
from ldm_jax.cli import web
from ldm_jax.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --workdir=RUN"),
        (["--workdir=gs://x/y"], "is an address"),
        (["--workdir=x", "--port=0"], "--port=0 is not in"),
        (["--workdir=x", "--max-pixels=-1"], "--max-pixels=-1 must be above 0"),
        (["--workdir=x", "--every=0"], "--every=0 must be above 0"),
    ],
)
def test_wrong_options_exit_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        web.main(argv)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_only_this_machine_comes_by_default():
    args = web.parse(["--workdir=a", "--workdir=b", "--run=c"])
    assert (args.host, args.port, args.workdir, args.run) == ("127.0.0.1", 7860, ["a", "b"], ["c"])


def test_an_address_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"--port={port} cannot be served .*give another --port"):
            web._check_free("127.0.0.1", port)
    web._check_free("127.0.0.1", port)


def test_without_gradio_it_says_how_to_get_it(tmp_path):
    """Everything but the page is imported without Gradio, too."""
    config_file.save(tmp_path / "run", recipes.load("quickstart_ldm:tiny").to_dict())
    code = (
        "import sys\n"
        "sys.modules['gradio'] = None\n"
        "from ldm_jax.web import drawing, form, models, server, watch\n"
        "from ldm_jax.cli import web\n"
        f"web.main(['--workdir={tmp_path / 'run'}'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "needs Gradio" in result.stderr and "pip install 'ldm_jax[web]'" in result.stderr


def test_the_documentation_names_its_options():
    known = {option for action in web.parser()._actions for option in action.option_strings}
    text = (ROOT / "docs" / "web.md").read_text()
    found = set(re.findall(r"(?:web\.py|ldm-web) [^\n`]*", text))
    used = {option for line in found for option in re.findall(r"--[a-z][\w-]*", line)}
    assert len(found) > 3 and used <= known
    rows = set(re.findall(r"^\| `(--[\w-]+)", text, re.MULTILINE))
    assert rows == known - {"--help", "-h"}
