"""Pictures and metric files."""

import json

import numpy as np
from PIL import Image

from ldm_jax.data.transforms import to_uint8
from ldm_jax.training import logging


def test_grid_places_images_row_by_row():
    images = np.stack([np.full((4, 4, 3), v, np.float32) for v in (-1.0, 0.0, 1.0)])
    sheet = logging.grid(images, columns=2, pad=1)
    assert sheet.shape == (11, 11, 3)
    assert (sheet[1, 1, 0], sheet[1, 6, 0], sheet[6, 1, 0], sheet[6, 6, 0]) == (0, 128, 255, 255)


def test_to_uint8_clips_and_rounds():
    values = to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]))
    assert values.tolist() == [0, 0, 128, 255, 255]


def test_png_carries_its_texts(tmp_path):
    logging.save_png(tmp_path / "a" / "x.png", np.zeros((2, 2, 1), np.uint8), {"seed": 3})
    assert Image.open(tmp_path / "a" / "x.png").text == {"seed": "3"}


def test_resumed_metrics_drop_the_steps_that_are_done_again(tmp_path):
    writer = logging.Writer(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": step})
    writer.close()
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 4, "lo')  # cut short by a kill
    writer = logging.Writer(tmp_path, resume_step=2)
    writer.scalars(3, {"loss": 30})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_duration_reads_like_a_clock():
    assert (logging.duration(65), logging.duration(3725)) == ("1m05s", "1h02m")
    assert logging.duration(float("nan")) == "?"
