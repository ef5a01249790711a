"""Metric files."""

import json
import resource
from contextlib import contextmanager

import numpy as np
import pytest

from ldm_jax.errors import WriteFailed
from ldm_jax.training import logging


@contextmanager
def full_beyond(size):
    """As on a full disk: no file may become larger than so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


@pytest.mark.parametrize("damage", [b"\xe5", b"[1]", b'{"step": "2"}', b"[" * 10**5, b'{"loss": 1}'])
def test_a_damaged_line_is_left_out_and_named(damage, tmp_path, capsys):
    whole = [b'{"step": 1, "val_loss": 1.0}', b'{"step": 3, "loss": 1.0}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([whole[0], damage, whole[1], b'{"st']))
    assert logging.has_numbers(tmp_path, 1, "val_") and not logging.has_numbers(tmp_path, 2, "val_")
    logging.Writer(tmp_path, resume_step=3).close()
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == whole
    assert "metrics.jsonl: damaged lines are left out: 1, the first is line 2" in capsys.readouterr().out


def test_a_full_disk_is_told_in_a_sentence(tmp_path):
    writer = logging.Writer(tmp_path)
    writer.scalars(1, {"loss": 1.0})
    told = r"could not be written: File too large\. .*GiB are free there\. Make room, then the same command goes on"
    with full_beyond(60):
        with pytest.raises(WriteFailed, match=rf"metrics\.jsonl {told}"):
            writer.scalars(2, {"loss": 1.0})
        with pytest.raises(WriteFailed, match=rf"pictures/samples_0000002\.png {told}"):
            writer.picture(2, "samples", np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
        with pytest.raises(WriteFailed, match=rf"metrics\.jsonl {told}"):
            writer.close()
    logging.Writer(tmp_path, 1).close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_tensorboard_on_a_full_disk_is_told_and_nothing_waits_for_it(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = logging.Writer(tmp_path)
    values = {f"value {i}": float(i) for i in range(100)}
    with full_beyond(2**15), pytest.raises(WriteFailed, match=r"tensorboard could not be written: File too large"):
        for step in range(100):
            writer.events.scalars(step, values)
    writer.close()


def test_tensorboard_reads_what_was_written(tmp_path):
    tensorboardx = pytest.importorskip("tensorboardX")
    writer = logging.Writer(tmp_path, resume_step=3)
    writer.scalars(4, {"loss": 0.5})
    writer.picture(4, "samples", np.zeros((4, 6, 3), np.uint8))
    writer.close()
    writer.close()  # it may be called again
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(tensorboardx.proto.event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert [event.step for event in events] == [0, 4, 4, 4] and events[1].session_log.status == 1
    assert events[2].summary.value[0].tag == "loss" and events[2].summary.value[0].simple_value == 0.5
    assert (events[3].summary.value[0].image.height, events[3].summary.value[0].image.width) == (4, 6)
