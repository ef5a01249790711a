"""Where files may be: addresses are refused, in every command and from Python, before anything is written."""

import errno
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from etils import epath

import ldm_jax
from ldm_jax import files, images
from ldm_jax.cli import convert, evaluate, options, sample, train, web
from ldm_jax.conditions import vectors
from ldm_jax.data import copies, latents, sources, tokenizers
from ldm_jax.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "gs://bucket/x"
TRAIN = ["--config=quickstart_text:tiny"]


def test_where_a_run_may_be(tmp_path):
    """A folder of this machine, as text, as a path or as an address."""
    for given in (tmp_path, str(tmp_path), tmp_path.as_uri(), epath.Path(tmp_path)):
        assert files.at(given) == tmp_path and type(files.at(given)) is type(tmp_path)
    assert files.is_local(epath.Path(tmp_path)) and not files.is_local(epath.Path(BUCKET))
    with pytest.raises(UsageError, match=r"--workdir: s3://b/x is an address, .* gs://BUCKET/FOLDER\. Mount other"):
        files.at("s3://b/x", "--workdir")
    with pytest.raises(UsageError, match="pip install gcsfs"):
        files.at(BUCKET, "--workdir")


def test_paths_of_this_machine_pass(tmp_path):
    assert files.local(tmp_path, "--out") == tmp_path and str(files.local("a:b//c", "--out")) == "a:b/c"


@pytest.mark.parametrize(
    ("parse", "arguments", "option"),
    [
        (train.parse, [*TRAIN, f"--workdir={BUCKET}"], "--workdir"),
        (train.parse, [*TRAIN, f"--config.first_stage.checkpoint={BUCKET}"], "--config.first_stage.checkpoint"),
        (train.parse, [*TRAIN, f"--config.data.path={BUCKET}"], "--config.data.path"),
        (train.parse, [*TRAIN, f"--config.data.cache_latents={BUCKET}"], "--config.data.cache_latents"),
        (train.parse, [*TRAIN, f"--config.conditioner.tokenizer={BUCKET}"], "--config.conditioner.tokenizer"),
        (train.parse, ["--config=quickstart_classifier:tiny", f"--config.guides={BUCKET}"], "--config.guides"),
        (sample.parse, [f"--workdir={BUCKET}"], "--workdir"),
        (sample.parse, ["--workdir=x", f"--out={BUCKET}"], "--out"),
        (sample.parse, ["--workdir=x", f"--lpips_weights={BUCKET}"], "--lpips-weights"),
        (convert.parse, ["--from", BUCKET, "--to", "x"], "--from"),
        (convert.parse, ["--from", "x", "--to", BUCKET], "--to"),
        (convert.parse, ["--check", BUCKET], "--check"),
        (evaluate.main, ["x", BUCKET], "WHAT"),
        (evaluate.main, ["x", f"--out={BUCKET}"], "--out"),
        (evaluate.main, ["x", f"--reference={BUCKET}"], "--reference"),
    ],
)
def test_commands_refuse_addresses(parse, arguments, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"{option}: {BUCKET} is an address" in said and "gcsfuse" in said
    assert not list(tmp_path.iterdir())


def test_the_same_of_this_machine_is_a_path(tmp_path, monkeypatch):
    """Nothing is made in a folder of the name file:."""
    monkeypatch.chdir(tmp_path)
    address, path = (tmp_path / "a b").as_uri(), str(tmp_path / "a b")
    assert sample.parse(["--workdir=x", f"--out={address}"]).out == path
    assert convert.parse([f"--check={address}"])[0].check == path
    found = evaluate.parse(["x", address, f"--reference={address}", f"--out={address}"])
    assert found.what == ["x", path] and found.reference == found.out == path and found.cache is None
    assert web.parse([f"--run={address}", "--run=y"]).run == [path, "y"]
    _, config = train.parse([*TRAIN, f"--config.data.path={address}", f"--config.data.cache_latents={address}"])
    assert config.data.path == config.data.cache_latents == path


def test_scripts_refuse_addresses(capsys):
    parser = options.Parser("")
    parser.add_argument("--out", type=Path, default=Path("x"))
    assert parser.parse_args(["--out=file:///x/y"]).out == Path("/x/y") and parser.parse_args([]).out == Path("x")
    with pytest.raises(SystemExit) as end:
        parser.parse_args([f"--out={BUCKET}"])
    assert end.value.code == 2 and f"argument --out: {BUCKET} is an address" in capsys.readouterr().err


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_what_scripts_write_is_a_path(script):
    text = script.read_text()
    options_of_paths = re.findall(r"""["'](?:--out|(?:--)?workdir)["'],(.*)""", text)
    assert all("type=Path" in rest for rest in options_of_paths)


def test_a_prompt_may_hold_an_address():
    assert sample.parse(["--workdir=x", "--prompt=the page http://a.b"]).prompt == ["the page http://a.b"]


def test_python_refuses_addresses():
    with pytest.raises(UsageError, match="the run directory: s3://x is an address"):
        ldm_jax.load("s3://x")
    made = ldm_jax.Images([np.zeros((2, 2, 3), np.uint8)], ["a"], {})
    with pytest.raises(UsageError, match="folder: s3://x is an address"):
        made.save("s3://x")
    with pytest.raises(UsageError, match="image: gs://bucket/x is an address"):
        images.pictures("image", BUCKET)
    with pytest.raises(UsageError, match="vectors: gs://bucket/x is an address"):
        vectors.requests(BUCKET, 1, 1)
    for address in ("s3://bucket/x", BUCKET):  # there is no client for gs:// here
        with pytest.raises(UsageError, match=f"path: {address} is an address"):
            sources.FolderSource(address)
        with pytest.raises(UsageError, match=f"folder: {address} is an address"):
            latents.open_store(address, {}, 1, (1,))


def test_copies_and_tokenizers_are_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv(copies.PLACE, BUCKET)
    with pytest.raises(UsageError, match="LDM_JAX_COPIES: gs://bucket/x is an address"):
        copies.place_of(tmp_path, b"")
    made = tokenizers.train_wordpiece(["a"], 9, tmp_path)
    with pytest.raises(UsageError, match="folder: gs://bucket/x is an address"):
        tokenizers.TextTokenizer(made).save(BUCKET)


def test_errors_that_may_pass():
    def of(module, name, **known):
        return type(name, (Exception,), {"__module__": module, **known})("it")

    for error in (of("gcsfs.retry", "HttpError", code="502"), of("aiohttp.client", "ClientConnectorError"),
                  of("requests.exceptions", "ProxyError"), of("google.auth.exceptions", "TransportError"),
                  of("google.auth.exceptions", "RefreshError", retryable=True), of("gcsfs.retry", "ChecksumError"),
                  OSError(errno.ENETUNREACH, "no way"), socket.gaierror(), TimeoutError(), ConnectionResetError(),
                  ValueError("UNAVAILABLE: error"), of("tensorflow", "DeadlineExceededError")):  # fmt: skip
        assert files.may_pass(error), repr(error)
    for error in (of("gcsfs.retry", "HttpError", code=401), of("aiohttp.client", "ClientResponseError", status=404),
                  of("google.auth.exceptions", "RefreshError", retryable=False), OSError("Forbidden: x"),
                  FileNotFoundError(), OSError(errno.ENOSPC, "full"), ValueError("Bad Request")):  # fmt: skip
        assert not files.may_pass(error), repr(error)


def test_errors_of_this_machine_are_left_alone(tmp_path):
    for error in (OSError(errno.EACCES, "no"), ValueError("x"), FileNotFoundError()):
        with pytest.raises(type(error)), files.reaching(tmp_path, write=True):
            raise error
    assert files.temporary(tmp_path / "a") != files.temporary(tmp_path / "a")


def test_gcsfs_is_asked_once():
    class Old:
        def cat_file(self, path, start=None, end=None, **kwargs):
            pass

    class New(Old):
        async def _cat_file(self, path, start=None, end=None, concurrency=4, **kwargs):
            pass

    assert files._one_request(Old) == {} and files._one_request(New) == {"concurrency": 1}
