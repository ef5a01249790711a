"""Manifests: every changed bit of a folder shows, and what is wrong is named."""

import hashlib
import json

import numpy as np
import pytest

from ldm_jax import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "numbers").write_bytes(bytes(range(48)))
    (tmp_path / "names").write_text("{}")
    (tmp_path / "later").write_text("x")
    manifest.write(tmp_path, skip=["later"])
    return tmp_path


def test_it_lists_names_sizes_and_checksums(folder):
    record = json.loads((folder / "manifest.json").read_text())
    assert {name: entry["size"] for name, entry in record["files"].items()} == {"d/numbers": 48, "names": 2}
    assert record["checksum"] == "sums" and not list(folder.glob("*.tmp"))
    assert manifest.problems(folder) == []
    (folder / "later").write_text("another")
    (folder / "new").write_text("what it does not name does not count")
    assert manifest.problems(folder) == []


@pytest.mark.parametrize("name", ["d/numbers", "names", "manifest.json"])
def test_every_single_bit_counts(folder, name):
    """Of the manifest itself every seventh, so that it takes a second."""
    good = (folder / name).read_bytes()
    for bit in range(0, 8 * len(good), 7 if name == "manifest.json" else 1):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(bad)
        found = manifest.problems(folder)
        assert found, (name, bit)
        assert name == "manifest.json" or (len(found) == 1 and found[0].startswith(f"{name}: its contents"))


def test_what_is_wrong_is_said(folder):
    path = folder / "d" / "numbers"
    path.write_bytes(bytes(47))
    assert manifest.problems(folder) == ["d/numbers: it has 47 bytes, 48 were written"]
    path.write_bytes(bytes(48))
    assert "another checksum" in manifest.problems(folder)[0]
    path.unlink()
    (folder / "names").unlink()
    (folder / "names").mkdir()
    assert manifest.problems(folder) == ["d/numbers: it is missing", "names: it cannot be read (Is a directory)"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "checksum": "sha256", "files": {"a": 3}}'])
def test_a_damaged_manifest_is_damage(folder, text):
    (folder / "manifest.json").write_text(text)
    assert manifest.problems(folder) == ["manifest.json: it is damaged"]


def test_another_version_and_none(folder):
    (folder / "manifest.json").write_text('{"version": 2, "checksum": "sha256", "files": {}}')
    assert manifest.problems(folder) == ["manifest.json: it is of another version"]
    (folder / "manifest.json").unlink()
    assert manifest.problems(folder) is None


def of_version_1(folder):
    files = {}
    for name in ("d/numbers", "names"):
        data = (folder / name).read_bytes()
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "checksum": "sha256", "files": files}))


def test_manifests_of_before_are_compared(folder):
    of_version_1(folder)
    assert manifest.problems(folder) == []
    (folder / "d" / "numbers").write_bytes(bytes(range(1, 49)))
    (problem,) = manifest.problems(folder)
    assert problem.startswith("d/numbers: its contents") and "another checksum" in problem


def test_large_files_are_compared_in_blocks_while_something_else_is_done(folder, monkeypatch):
    """Here blocks of 2 kB, each read in two pieces, and no small files."""
    monkeypatch.setattr(manifest, "BLOCK", 2048)
    monkeypatch.setattr(manifest, "_PIECE", 1024)
    monkeypatch.setattr(manifest, "_SMALL", -1)
    path, good = folder / "d" / "numbers", np.random.default_rng(0).bytes(5000)
    path.write_bytes(good)
    manifest.write(folder, only=["d/numbers"])
    words = np.frombuffer(good + bytes(120), "<u8").reshape(10, 64)
    sums = [words[k : k + 4].sum(axis=1).tobytes() for k in (0, 4, 8)]  # of the sectors of each block
    whole = hashlib.sha256(b"".join(hashlib.sha256(of_block).digest() for of_block in sums)).hexdigest()
    assert json.loads((folder / "manifest.json").read_text())["files"]["d/numbers"]["sums"] == whole
    moved = good[512:1024] + good[:512] + good[1024:]
    for bad in (moved, good[2048:4096] + good[:2048] + good[4096:], good[:-1] + b"x", bytes(512) + good[512:]):
        path.write_bytes(bad)
        comparison = manifest.Comparison(folder)
        assert comparison.early == [] and "another checksum" in comparison.problems()[0]
    path.write_bytes(good[:-1])
    assert manifest.Comparison(folder).early == ["d/numbers: it has 4999 bytes, 5000 were written"]
    path.write_bytes(good)
    assert manifest.Comparison(folder).problems() == []


def test_large_files_are_read_in_few_pieces(folder, monkeypatch):
    """After each piece a thread waits for the interpreter's lock: 200 MB took 5 s beside Python that worked."""
    read, counts = manifest._read_into, []
    monkeypatch.setattr(manifest, "_read_into", lambda piece, file: counts.append(read(piece, file)) or counts[-1])
    with (folder / "d" / "numbers").open("wb") as file:
        file.truncate(manifest.BLOCK)
    manifest.write(folder, only=["d/numbers"])
    assert sum(counts) == manifest.BLOCK and len(counts) <= 4


def test_some_files_alone(folder):
    (folder / "d" / "numbers").unlink()
    assert manifest.problems(folder, only=["names"]) == []
    manifest.write(folder, only=["names"])
    assert manifest.problems(folder) == []
