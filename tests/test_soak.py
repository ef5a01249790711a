"""scripts/soak.py: what it reads from a run's output, and that it sees what is wrong. The soak itself is slow."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import soak

ROOT = Path(__file__).resolve().parents[1]
BEGIN = ["training images: 64", "1 x cpu, mesh {'data': 1}, global batch 8"]
COMPILED = [*BEGIN, "resumed runs/x at step 9", "  unet: 163,331 parameters", "compiled: training step 1.0 s",
            "planned memory 0.1 GiB"]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "phase"),
    [
        ([], "start-up"), (BEGIN, "preparing"), (COMPILED[:3], "compiling"), (COMPILED[:4], "compiling"),
        (COMPILED[:5], "compiling"),
        (COMPILED, "step"), ([*COMPILED, "step 11/33  loss 1"], "step"),
        ([*COMPILED, "step 10/33  loss 1"], "evaluation"), ([*COMPILED, "step 14/33  loss 1"], "pictures"),
        ([*COMPILED, "step 35/90  loss 1"], "evaluation"), ([*COMPILED, "step 35  validation (8 images)"], "pictures"),
        ([*COMPILED, "step 10  validation (8 images)"], "step"), ([*COMPILED, "step 33/33  loss 1"], "evaluation"),
        ([*COMPILED, "step 14 was saved before its work was complete (picture): this is done now"], "pictures"),
    ],
)  # fmt: skip
def test_the_phase_is_read_from_the_output(lines, phase):
    assert soak.phase(lines) == phase


def test_a_save_is_seen_on_the_disk(tmp_path):
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp-1").mkdir(parents=True)
    assert soak.phase([*COMPILED, "step 12/33  loss 1"], tmp_path) == "save"


def test_every_phase_meets_every_signal():
    deck = soak._deck(random.Random(0))
    first, second = ([next(deck) for _ in range(21)] for _ in range(2))
    assert len(set(first)) == len(set(second)) == 21 and first != second


def a_run(folder, monkeypatch=None, steps=10):
    """What a run that has ended leaves, but for its checkpoints."""
    (folder / "pictures").mkdir(parents=True)
    lines = [{"step": k, "time": k, "loss": 1 / k} for k in range(1, steps + 1)]
    lines += [{"step": k, "val_loss": 2 / k} for k in soak.due("evaluate", steps)]
    lines.sort(key=lambda line: line["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for k in soak.due("picture", steps):
        Image.fromarray(np.full((4, 4), k, np.uint8)).save(folder / "pictures" / f"samples_{k:07d}.png")
    return folder


@pytest.mark.parametrize(
    "harm", ["nothing", "line", "twice", "number", "validation", "picture", "pixel", "lock", "tmp"]
)
def test_what_is_wrong_is_seen(harm, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "arrays", lambda workdir: {"a": np.ones(3)})
    ours, theirs = a_run(tmp_path / "ours"), a_run(tmp_path / "theirs")
    text = (ours / "metrics.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    picture = ours / "pictures" / "samples_0000007.png"
    match harm:
        case "line":
            text = text.replace(lines[3], "")
        case "twice":
            text += lines[-2]
        case "number":
            text = text.replace('"loss": 0.5', '"loss": 0.5000001')
        case "validation":
            text = text.replace(lines[5], "")
        case "picture":
            picture.unlink()
        case "pixel":
            Image.fromarray(np.full((4, 4), 8, np.uint8)).save(picture)
        case "lock":
            (ours / "train.lock").write_text("")
        case "tmp":
            (ours / "frozen.orbax-checkpoint-tmp-3").mkdir()
    (ours / "metrics.jsonl").write_text(text)
    wrong, _ = soak.differences(ours, theirs, 0.0, 10)
    assert bool(wrong) == (harm != "nothing"), wrong
    # A small difference passes where the number of devices changed.
    assert bool(soak.differences(ours, theirs, soak.WITHIN, 10)[0]) == (harm not in ("nothing", "number", "pixel"))


def test_other_arrays_are_seen(tmp_path, monkeypatch):
    ours, theirs = a_run(tmp_path / "ours"), a_run(tmp_path / "theirs")
    monkeypatch.setattr(soak, "arrays", lambda workdir: {"a": np.float32(1 + 1e-4 * (workdir == ours))})
    for within, bad in ((0.0, True), (1e-5, True), (1e-3, False)):
        wrong, largest = soak.differences(ours, theirs, within, 10)
        assert wrong == ["array a differs"] * bad and 0.9e-4 < largest < 1.1e-4


def test_a_bit_is_flipped_where_another_checkpoint_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(soak.checkpoint, "steps", lambda workdir: [3, 6])
    folder = tmp_path / "checkpoints" / "6"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(64))
    assert soak.flip_a_bit(tmp_path, random.Random(0))
    assert sum(byte.bit_count() for byte in (folder / "data").read_bytes()) == 1
    monkeypatch.setattr(soak.checkpoint, "steps", lambda workdir: [6])
    assert not soak.flip_a_bit(tmp_path, random.Random(0))


@pytest.mark.slow
def test_ten_kills():
    """The short form of `make soak`. It must have ended that many starts."""
    result = subprocess.run([sys.executable, "scripts/soak.py", "--kills=10"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-2000:]
    assert re.search(r": 10 kills in \d+ starts", result.stdout) and "nothing was wrong" in result.stdout
    for kind in set(soak.TURNS):
        assert re.search(rf"runs of kind {kind} \| [1-9]", result.stdout), kind
