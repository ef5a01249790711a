import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.sources import FolderSource
from scripts import prepare_emoji

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_emoji.py"


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def run(*arguments, **options):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_tarballs_become_a_captioned_folder(tmp_path):
    file = io.BytesIO()
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (250, 0, 0, 255)
    Image.fromarray(pixels).save(file, "webp", lossless=True)
    about = {"name": "images", "version": "1", "license": "MIT", "homepage": "somewhere"}
    names = ("1f600", "0031-fe0f", "1f44b_1f3fb", "ffff")
    write_tar(
        tmp_path / "images.tgz",
        {
            "package.json": json.dumps(about).encode(),
            "README.md": "Copyright © A. <br />".encode(),
            **{f"assets/{name}.webp": file.getvalue() for name in names},
        },
    )
    emoji = [
        {"label": "grin", "hexcode": "1F600", "group": 0},
        {"label": "one", "hexcode": "31", "group": 1},
        {
            "label": "wave",
            "hexcode": "1F44B",
            "group": 0,
            "skins": [{"label": "wave: light", "hexcode": "1F44B-1F3FB", "group": 0}],
        },
    ]
    groups = {"groups": [{"order": 0, "message": "people"}, {"order": 1, "message": "digits"}]}
    write_tar(
        tmp_path / "names.tgz",
        {
            "en/data.json": json.dumps(emoji).encode(),
            "LICENSE": b"MIT too",
            "en/messages.json": json.dumps(groups).encode(),
        },
    )
    done = run(
        "--out",
        tmp_path / "out",
        "--size",
        4,
        "--tarball",
        tmp_path / "images.tgz",
        "--metadata-tarball",
        tmp_path / "names.tgz",
    )
    assert done.returncode == 0, done.stderr
    assert "3 images" in done.stdout and "no name known: 1 (ffff)" in done.stdout
    source = FolderSource(tmp_path / "out", "all")
    assert source.class_names == ("digits", "people")
    waves = ("wave: light", "a wave with light")
    assert [(e["text"], e["label"]) for e in source] == [(("one", "a one"), 0), (waves, 1), (("grin", "a grin"), 1)]
    assert source[0]["image"].shape == (4, 4, 3) and (source[0]["image"][-1] == 255).all()
    licence = (tmp_path / "out" / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Copyright © A." in licence and "MIT too" in licence


@pytest.mark.parametrize("name, asked", [
    ("cat face", "a cat face"), ("airplane", "an airplane"), ("unicorn", "a unicorn"),
    ("flag: Japan", "the flag of Japan"),
    ("OK hand: dark skin tone", "an OK hand with dark skin tone"),
])  # fmt: skip
def test_names_as_people_ask_for_them(name, asked):
    assert prepare_emoji.captions(name) == [name, asked]


def test_missing_npm_is_said(tmp_path):
    done = run("--out", tmp_path / "out", env={"PATH": str(tmp_path)})
    assert done.returncode != 0 and "npm was not found" in done.stderr
