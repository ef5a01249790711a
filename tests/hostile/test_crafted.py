"""Crafted files: the readers raise our own errors, stay alive, take little memory and run nothing."""

import contextlib
import inspect
import io
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from PIL import EpsImagePlugin, Image, TiffImagePlugin

from ldm_jax import images
from ldm_jax.convert import torch_pickle, torch_reader
from ldm_jax.convert.safetensors_file import read_safetensors
from ldm_jax.convert.torch_reader import read_torch, read_torch_object
from ldm_jax.data.layout import LayoutCoder
from ldm_jax.data.sources import FolderSource
from ldm_jax.errors import DataError, Missing, RequestError, UsageError
from tests.hostile import corpus
from tests.hostile.child import MEMORY

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60


def endings(folder: Path) -> dict[str, str]:
    """{name of a file: how reading it ended}. Fails if the process dies, takes much memory or lets an error escape."""
    if sys.platform != "linux":
        pytest.skip("memory is limited and measured as Linux does it")
    command = [sys.executable, "-W", "ignore", "-m", "tests.hostile.child", str(folder)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]} ended the process with {done.returncode}: {done.stderr[-2000:]}"
    found = [line for line in lines if "ending" in line]
    escaped = [line for line in found if line["ending"].startswith("ESCAPED")]
    assert not escaped, escaped
    assert found and found[-1]["memory"] < MEMORY
    return {line["name"]: line["ending"] for line in found}


# PyTorch's files


def test_torch_files(tmp_path):
    corpus.write(tmp_path, ".ckpt", corpus.torch_files())
    found = endings(tmp_path)
    assert len(found) == len(corpus.torch_files())
    assert all(ending.startswith("UsageError") for ending in found.values()), found
    for name, said in {
        "git-LFS pointer": "this is a git-LFS pointer: the file itself was not downloaded",
        "HTML page": "this is an HTML page",
        "big endian, old": "the other byte order",
        "nested key": "a key of the type tuple",
        "expanded": "its numbers take 1073741824 bytes",
        "steps": "more than 1000000 steps",
    }.items():
        assert said in found[f"{name}.ckpt"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_plain_files_are_read(tmp_path, compression):
    (tmp_path / "new.ckpt").write_bytes(corpus.zipped(corpus.PLAIN, compression=compression))
    old = corpus.state(corpus.tensor((2, 3), (3, 1), old=True), corpus.tensor((3, 2), (1, 3), old=True))
    (tmp_path / "old.ckpt").write_bytes(corpus.old(old))
    for name in ("new.ckpt", "old.ckpt"):
        found, numbers = read_torch(tmp_path / name), np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(found["w0"], numbers)
        np.testing.assert_array_equal(found["w1"], numbers.T)


@pytest.mark.parametrize("name", [corpus.REBUILD, corpus.DICT, b"ctorch._utils\n_rebuild_parameter\n"])
def test_nothing_of_ours_changes(tmp_path, name):
    """The opcode BUILD sets attributes of any object that a pickle can name."""

    def attributes():
        functions = [f for m in (torch_reader, torch_pickle) for _, f in inspect.getmembers(m, inspect.isfunction)]
        return [(f.__name__, f.__defaults__, f.__kwdefaults__, dict(f.__dict__)) for f in functions]

    before = attributes()
    (tmp_path / "x.ckpt").write_bytes(corpus.changes_our_function(name))
    with pytest.raises(UsageError):
        read_torch(tmp_path / "x.ckpt")
    assert attributes() == before


def test_shared_and_circular_containers(tmp_path):
    """What holds itself is read once, and so is what is there twice."""
    shared = corpus.START + b"]q\x00h\x00a(h\x00h\x00tq\x01a(h\x01h\x01ta."
    (tmp_path / "x.ckpt").write_bytes(corpus.zipped(shared))
    found = read_torch_object(tmp_path / "x.ckpt")
    assert found[0] is found and found[1] == (found, found) and found[2][0] is found[2][1]


def test_a_file_that_is_not_there(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "pipe", "."):
        for read in (read_torch, read_safetensors):
            with pytest.raises(Missing, match="does not exist, or is not a file"):
                read(tmp_path / name)


# safetensors


def test_safetensors_files(tmp_path):
    """What the library refuses is refused, what it reads is read."""
    files = corpus.safetensors_files()
    corpus.write(tmp_path, ".safetensors", files)
    found, differ = endings(tmp_path), []
    for name in files:
        try:
            theirs = safetensors.numpy.load_file(tmp_path / f"{name}.safetensors")
        except (safetensors.SafetensorError, OSError):
            theirs = None
        ours = found[f"{name}.safetensors"] == "read"
        if ours != (theirs is not None):
            differ.append(name)
        elif ours:
            same = read_safetensors(tmp_path / f"{name}.safetensors")[0]
            assert same.keys() == theirs.keys()
            assert all(np.array_equal(same[key], theirs[key]) for key in theirs)
    assert not differ
    assert "git-LFS pointer: the file itself was not downloaded" in found["git-LFS pointer.safetensors"]


def test_what_no_writer_makes_is_refused(tmp_path):
    corpus.write(tmp_path, ".safetensors", corpus.ONLY_HERE_REFUSED)
    assert not [name for name, ending in endings(tmp_path).items() if not ending.startswith("UsageError")]


# Pictures


def test_pictures(tmp_path):
    corpus.write(tmp_path, ".png", corpus.pictures())
    found = endings(tmp_path)
    assert len(found) == len(corpus.pictures())
    assert all("is not a picture that can be read" in ending for ending in found.values()), found
    assert "at most 67108864" in found["bomb of 100 megapixels.png"]
    assert "git-LFS pointer" in found["git-LFS pointer.png"]


def test_no_other_program_runs(tmp_path, monkeypatch):
    """Pillow would give PostScript to Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    (tmp_path / "gs").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "a.png").write_bytes(corpus.pictures()["PostScript"])
    with pytest.raises(RequestError, match="not a picture"):
        images.pictures("image", tmp_path / "a.png")
    assert not (tmp_path / "ran").exists()


def test_deep_and_palette_pictures(tmp_path):
    """16 bits are rounded to 8; a palette is resolved, its transparency lies on white."""
    grey = np.array([[0, 128, 129, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    (given,) = images.pictures("image", tmp_path / "grey.png")
    assert given.pixels("image", 1)[0, :, 0].tolist() == [0, 0, 1, 255]
    (given,) = images.pictures("image", tmp_path / "palette.png")
    assert given.pixels("image", 3)[0].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode, how", [("P", {"transparency": 1}), ("L", {})])
def test_large_pictures_need_little_memory(tmp_path, mode, how):
    """The largest that are read, in files of some kilobytes; their conversion has no copy of the whole."""
    Image.new(mode, (8192, 8192)).save(tmp_path / "a.png", **how)
    assert endings(tmp_path) == {"a.png": "read"}


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "I;16", "1", "RGB"])
def test_strips_make_the_same_picture(mode, monkeypatch):
    rng = np.random.default_rng(0)
    bands = {"LA": 2, "RGBA": 4, "RGB": 3}.get(mode)
    array = rng.integers(0, 255, (37, 11, bands) if bands else (37, 11), np.uint8)
    image = Image.fromarray(array.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(array).convert(mode)
    if mode == "P":
        image.info["transparency"] = 7
    whole = [images.to_channels(image, channels) for channels in (1, 3)]
    monkeypatch.setattr(images, "STRIP", 44)
    for one, channels in zip(whole, (1, 3)):
        np.testing.assert_array_equal(images.to_channels(image, channels), one)


def test_the_command_says_it_in_a_paragraph(tmp_path, capsys):
    """sample.py --image with a file that is none."""
    from ldm_jax import config_file, recipes
    from ldm_jax.cli import sample

    config_file.save(tmp_path / "run", recipes.load("imagenet_superres_ldm4:tiny").to_dict())
    corpus.write(tmp_path, ".png", corpus.pictures())
    for name in corpus.pictures():
        with pytest.raises(SystemExit) as stopped:
            sample.main([f"--workdir={tmp_path / 'run'}", f"--image={tmp_path / name}.png"])
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.strip().startswith("sample.py: --image=") and len(told) < 600


def test_a_mask_in_colours_that_nothing_converts(tmp_path):
    from ldm_jax.conditions import inpaint

    file = io.BytesIO()
    Image.new("LAB", (8, 8)).save(file, "TIFF")
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    hole = images.pictures("mask", tmp_path / "a.tif")[0]
    assert isinstance(hole.image, TiffImagePlugin.TiffImageFile) and hole.image.mode == "LAB"
    whole = images.Picture("", Image.new("RGB", (8, 8)), "")
    with pytest.raises(RequestError, match=r"mask: .*a\.tif"):
        inpaint._asked(whole, hole, 8, 0.0)


# Folders and annotations


def test_metadata(tmp_path):
    for name, text in corpus.LINES.items():
        corpus.folder(tmp_path / name, text)
    found = endings(tmp_path)
    assert len(found) == len(corpus.LINES)
    for name, ending in found.items():
        assert ending.startswith("DataError") and "metadata.jsonl" in ending and len(ending) < 1000, (name, ending)
        assert "line 1: " in ending or name in ("git-LFS pointer", "HTML page")


def test_a_long_line_of_metadata_is_not_read(tmp_path):
    corpus.folder(tmp_path / "set", "")
    with (tmp_path / "set/metadata.jsonl").open("wb") as file:
        file.truncate(2**30)
    assert re.match(r"DataError: .*metadata\.jsonl, line 1: more than 8388608 letters", endings(tmp_path)["set"])


def test_metadata_behind_a_link(tmp_path):
    corpus.folder(tmp_path / "set", "")
    (tmp_path / "set/metadata.jsonl").unlink()
    (tmp_path / "set/metadata.jsonl").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a file"):
        FolderSource(tmp_path / "set", "all")


def test_an_image_has_one_name(tmp_path):
    """The split is a hash of the name: a second name would put the image into the other split, too."""
    corpus.folder(tmp_path / "set", "\n".join(f'{{"file_name": "{name}"}}' for name in ("./a.png", ".//./a.png")))
    source = FolderSource(tmp_path / "set", "all")
    assert [source.annotations(i)["name"] for i in range(len(source))] == ["a.png", "a.png"]


def test_names_that_are_not_text(tmp_path):
    """A file's name is bytes; and what is no file is no image."""
    for name in (b"\xff.png", b"a.png"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(corpus.png())
    os.mkfifo(tmp_path / "pipe.png")
    source = FolderSource(tmp_path, "all")
    assert len(source) == 3 and source.identity()
    FolderSource(tmp_path, "train", validation_fraction=1e-9)


def test_folders_that_are_too_deep(tmp_path):
    deep, at = 1200, os.open(tmp_path, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("d", dir_fd=at)
        at, before = os.open("d", os.O_RDONLY, dir_fd=at), at
        os.close(before)
    os.close(at)
    (tmp_path / "a.png").write_bytes(corpus.png())
    try:
        with pytest.raises(DataError, match="too deep") if sys.version_info < (3, 12) else contextlib.nullcontext():
            FolderSource(tmp_path, "all")
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.mark.parametrize(
    "layout",
    [
        {"box": [0, 0, 1, 1], "class": "3"},
        {"box": [0, 0, 1, 1], "class": 2.5},
        {"box": [0, 0, 1, 1], "class": 1e999},
        {"box": [0, 0, 1, 1], "class": 10**5000},
        {"box": ["0", "0", "1", "1"], "class": 3},
        {"box": [0, 0, 10**400, 1], "class": 3},
        {"box": [0, 0, float("nan"), 1], "class": 3},
        {"box": "0001", "class": 3},
        [0, 0, 1, 1],
        None,
    ],
)
def test_layouts(layout):
    from ldm_jax.conditions.layout import requests

    with pytest.raises(RequestError, match=r"^layout: the layout: "):
        requests([layout, layout] if not isinstance(layout, list) else layout, LayoutCoder(10))


def test_a_layout_file_that_was_not_downloaded(tmp_path):
    from ldm_jax.conditions.layout import requests

    (tmp_path / "a.json").write_bytes(corpus.LFS)
    with pytest.raises(RequestError, match="git-LFS pointer"):
        requests(tmp_path / "a.json", LayoutCoder(10))
