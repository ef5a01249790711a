"""The models in the box draw what is asked, and are whole and small."""

from pathlib import Path

import pytest

import ldm_jax
from ldm_jax import rundir
from ldm_jax.data import shapes
from ldm_jax.evaluation import scenes

BOX = Path(__file__).resolve().parents[1] / "pretrained"
MODELS = sorted(path.name for path in BOX.iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_whole_and_small_and_has_a_card(name):
    assert not any(bad for _, _, bad in rundir.audit(BOX / name))
    assert sum(file.stat().st_size for file in (BOX / name).iterdir()) < 16 * 2**20
    assert f"--workdir=pretrained/{name}" in (BOX / name / "README.md").read_text()


def test_shapes_have_the_colour_and_mostly_the_kind_of_their_class():
    labels = [kind * len(shapes.COLOURS) + colour for kind in (0, 2) for colour in range(8)]  # circles and triangles
    images = ldm_jax.load(BOX / "shapes_class").sample(label=labels, steps=10, guidance=4, seed=0, batch=16)
    found = [scenes.read(image)[0].name for image in images]
    wanted = [shapes.CLASS_NAMES[label] for label in labels]
    assert sum(a.split()[0] == b.split()[0] for a, b in zip(found, wanted)) >= 14
    assert sum(a == b for a, b in zip(found, wanted)) >= 8
