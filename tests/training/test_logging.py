"""Metric files."""

import json

from ldm_jax.training import logging


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
