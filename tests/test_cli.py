"""What all commands share: how options are written, help, and errors."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax import process
from ldm_jax.cli import options, train
from ldm_jax.errors import ConfigError, Missing

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "ldm_jax/cli").glob("*.py")]


@pytest.mark.parametrize("defined", ["--two-words", "--two_words"])
@pytest.mark.parametrize("option", ["--two-words=a_b-c", "--two_words=a_b-c", "--two_words a_b-c"])
def test_hyphens_and_underscores_are_alike_in_names(defined, option):
    parser = options.Parser("")
    parser.add_argument(defined)
    assert parser.parse_args(option.split()).two_words == "a_b-c"
    args, rest = parser.parse_with_overrides(["--config.a_b=c_d", "--noconfig.a_b", *option.split()])
    assert args.two_words == "a_b-c" and rest == ["--config.a_b=c_d", "--noconfig.a_b"]


@pytest.mark.parametrize("script", sorted(SCRIPTS), ids=lambda path: path.name)
def test_all_scripts_read_their_options_so(script):
    assert "argparse.ArgumentParser(" not in script.read_text()


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ["--config"]),
        (["--config=celeba"], ["no recipe 'celeba'", "celeba_ldm4"]),
        (["--config=celeba_ldm4", "--config.batch_siz=1"], ["config.batch_siz ", "config.batch_size"]),
        (["--config=celeba_ldm4", "--batch-size=1"], ["unexpected: --batch-size=1"]),
        (["--config=celeba_ldm4", "more"], ["unexpected: more"]),
    ],
)
def test_wrong_options_of_train(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(argv)
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and all(word in told for word in words)


@pytest.mark.parametrize("error", [ConfigError("of yours"), Missing("the images")])
def test_train_tells_what_the_user_can_mend(error, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "setup", raises(error))
    with pytest.raises(SystemExit) as stopped:
        train.main(["--config=quickstart_ldm:tiny", f"--workdir={tmp_path}"])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "quickstart_ldm:tiny cannot start" in told and str(error) in told


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_train_tells_of_a_full_disk_in_a_sentence(code, capsys, monkeypatch, tmp_path):
    """Wherever it meets it, as here in the preparation."""
    monkeypatch.setattr(process, "setup", raises(OSError(code, os.strerror(code), "tokenizer/vocab.txt")))
    with pytest.raises(SystemExit) as stopped:
        train.main(["--config=quickstart_ldm:tiny", f"--workdir={tmp_path}"])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and os.strerror(code) in told and "'tokenizer/vocab.txt': make room" in told


@pytest.mark.parametrize("error", [ValueError("of ours"), FileNotFoundError("a file"), RuntimeError("of XLA")])
def test_train_keeps_the_traceback_of_other_errors(error, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "setup", raises(error))
    with pytest.raises(type(error)) as raised:
        train.main(["--config=quickstart_ldm:tiny", f"--workdir={tmp_path}"])
    assert raised.value is error


def raises(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize(
    "script, words",
    [
        ("train.py", ["--config RECIPE", "--workdir", "--distributed", "--require-accelerator", "celeba_ldm4"]),
        ("convert.py", ["--from", "--to", "--config", "--no-ema"]),
    ],
)
def test_help_explains_the_options_on_a_screen(script, words):
    result = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(word in result.stdout for word in words) and len(result.stdout.splitlines()) <= 50
