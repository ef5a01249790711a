"""Manifests: every changed bit of a folder shows, and what is wrong is named."""

import json

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
    assert record["checksum"] == "sha256" and not list(folder.glob("*.tmp"))
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
    assert "another SHA-256" in manifest.problems(folder)[0]
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


def test_some_files_alone(folder):
    manifest.write(folder, only=["names"])
    (folder / "d" / "numbers").unlink()
    assert manifest.problems(folder) == []
