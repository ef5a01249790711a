"""Valid files with random damage: only our own errors leave the readers, and the process stays alive."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.hostile import corpus
from tests.hostile.test_crafted import endings

TRIES = 40  # of each kind

OLD = corpus.state(corpus.tensor((2, 3), (3, 1), old=True))
METADATA = (
    b'{"file_name": "a.png", "text": ["a", "b"], "label": 3, "vectors": [[1, 2.5], [3e2, -4]]}\n'
    b'{"file_name": "a.png", "label": 0, "objects": [{"box": [0, 0.25, 1, 1], "class": 1, "group": true}]}\n'
    b'{"file_name": "a.png", "label": 0, "objects": {"bbox": [[1, 2, 3, 4]], "categories": [2]}, "mask": "a.png"}\n'
)
CONFIG = (
    b'{"version": 2, "task": "ldm", "every": {"log": 5}, "keep": 3, "latent_scale": 1.0, "optim": {"b1": 0.9}, '
    b'"unet": {"ch": 4}, "diffusion": {"kind": "flow", "t_std": 1.0}, "conditioner": {"kind": "hybrid", "parts": '
    b'{"class": {"kind": "class", "dim": 4}}}, "ema": {"decay": 0.5, "sigma_rel": [0.1]}}'
)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to four kinds of damage."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(out) + 1)), int(rng.integers(1, 9))
        kind = rng.integers(6)
        if kind == 0:
            out[at : at + length] = rng.bytes(length)
        elif kind == 1:
            out[at:at] = rng.bytes(length)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at : at + length] = bytes([rng.choice([0, 127, 128, 255])]) * length
        elif kind == 4:
            out[at:at] = out[at : at + 4 * length]
        elif rng.random() < 0.2:
            del out[at:]
        else:
            out[at : at + 1] = b'0123456789}{][.,:"\\-eN'[at % 22 : at % 22 + 1]
    return bytes(out)


SEEDS = {
    "zip.ckpt": corpus.zipped(corpus.PLAIN),
    "deflated.ckpt": corpus.zipped(corpus.PLAIN, compression=zipfile.ZIP_DEFLATED),
    "pickle.ckpt": corpus.PLAIN,
    "old.ckpt": corpus.old(OLD),
    "x.safetensors": corpus.safetensors_files()["empty tensor"],
    "rgb.png": corpus.png(),
    "deep.png": corpus.png("I;16"),
    "palette.png": corpus.png("P"),
    "metadata": METADATA,
    "config.run": CONFIG,
}


@pytest.mark.parametrize("kind", SEEDS)
def test_random_damage(tmp_path: Path, kind):
    seed, rng = SEEDS[kind], np.random.default_rng(list(SEEDS).index(kind))
    for i, data in enumerate([seed, *(damaged(seed, rng) for _ in range(TRIES))]):
        if kind == "metadata":
            corpus.folder(tmp_path / f"{i}", data)
        elif kind == "config.run":
            (tmp_path / f"{i} {kind}").mkdir()
            (tmp_path / f"{i} {kind}/config.json").write_bytes(data)
        else:
            # Around the pickle the checksum is right.
            (tmp_path / f"{i} {kind}").write_bytes(corpus.zipped(data) if kind == "pickle.ckpt" else data)
    found = endings(tmp_path)
    assert len(found) == TRIES + 1
    assert next(ending for name, ending in found.items() if name.split()[0] == "0") == "read"
    assert sum(ending != "read" for ending in found.values()) > TRIES // 4  # the damage is damage
