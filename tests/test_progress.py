"""The line of long work on a terminal: rewritten in place, messages above it, within the width; nothing elsewhere."""

import fcntl
import logging
import os
import re
import struct
import sys
import termios
import threading
import time
from types import SimpleNamespace

import absl.logging
import numpy as np
import pytest

from ldm_jax import progress
from ldm_jax.cli import sample
from ldm_jax.evaluation import kept
from ldm_jax.pipeline import Progress
from ldm_jax.progress import Line
from ldm_jax.training import loop


class Terminal:
    """A pseudo-terminal as standard output and standard error."""

    def __init__(self, monkeypatch, columns=80):
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.columns = columns
        self.streams = [os.fdopen(slave, "w"), os.fdopen(os.dup(slave), "w")]
        monkeypatch.setattr(sys, "stdout", self.streams[0])
        monkeypatch.setattr(sys, "stderr", self.streams[1])
        monkeypatch.setenv("TERM", "xterm")
        self.sent = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        """A terminal reads all the time: what nobody reads holds the program up."""
        while True:
            try:
                data = os.read(self.master, 2**16)
            except OSError:
                return
            self.sent += data.decode()

    def rows(self):
        """What is on the screen. A row that is too long goes on in the next one, as on a terminal."""
        mark = "\x1b]mark\a"  # when it has come, all before it has
        self.streams[1].write(mark)
        self.streams[1].flush()
        for _ in range(1000):
            if mark in self.sent:
                break
            time.sleep(0.005)
        self.sent = self.sent.replace(mark, "")
        rows, column = [""], 0
        for token in re.findall(r"\x1b\[K|.|\n", self.sent.replace("\r\n", "\n"), re.DOTALL):
            if token == "\n":
                rows.append("")
                column = 0
            elif token == "\r":
                column = 0
            elif token == "\x1b[K":
                rows[-1] = rows[-1][:column]
            else:
                if column == self.columns:
                    rows.append("")
                    column = 0
                rows[-1] = rows[-1][:column] + token + rows[-1][column + 1 :]
                column += 1
        return rows


@pytest.fixture(autouse=True)
def given_back():
    yield
    assert not progress._lines and not progress._streams


@pytest.fixture
def clock(monkeypatch):
    """The time, which goes on when the test says so."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def walk(line, clock, first, last, seconds=1.0, text=""):
    for done in range(first, last + 1):
        clock.now += seconds
        line.show(done, text)


def test_one_line_is_rewritten_and_stays_in_the_end(monkeypatch, clock):
    terminal = Terminal(monkeypatch)
    with Line("step", 200, unit="steps") as line:
        clock.now += 60  # of the compiler, which is no part of the rate
        walk(line, clock, 1, 50, 0.5, "loss 0.25")
        (row,) = terminal.rows()
        assert row == "step 50/200  [#####..................]  25%  2 steps/s  left 1m15s  loss 0.25"
        walk(line, clock, 51, 200, 0.5)
    first, after = terminal.rows()
    assert first.startswith("step 200/200  [########################]  100%  2 steps/s  took 2m40s") and after == ""


def test_messages_of_both_streams_appear_above(monkeypatch, clock):
    terminal = Terminal(monkeypatch)
    with Line("step", 4) as line:
        walk(line, clock, 1, 2)
        print("saved", "well")
        print("a warning", file=sys.stderr, flush=True)
        print("begun", end=" ")
        walk(line, clock, 3, 3)
        print("and ended\ntwice")
        *above, row = terminal.rows()
        assert above == ["saved well", "a warning", "begun and ended", "twice"] and row.startswith("step 3/4  [")
        print("rest", end="")
    print("after")
    assert terminal.rows()[-3:] == [row, "restafter", ""]
    assert sys.stdout is terminal.streams[0] and sys.stderr is terminal.streams[1]


def test_messages_of_logging_appear_above(monkeypatch, clock):
    """Its handlers, and absl's own, keep the stream that there was when they were made."""
    terminal = Terminal(monkeypatch)
    plain, absl_handler = logging.StreamHandler(sys.stderr), absl.logging.ABSLHandler(None)
    absl_handler.python_handler.setStream(sys.stderr)
    logger = logging.getLogger("ldm_jax.test_progress")
    logger.handlers, logger.propagate = [plain, absl_handler], False
    with Line("step", 4) as line:
        walk(line, clock, 1, 2)
        logger.warning("a stone")
        walk(line, clock, 3, 3)
        *above, row = terminal.rows()
        assert above[0] == "a stone" and above[-1].endswith("] a stone") and row.startswith("step 3/4  [")
    assert plain.stream is terminal.streams[1] and absl_handler.python_handler.stream is terminal.streams[1]
    logger.handlers = []


def test_no_number_of_the_text_is_cut(monkeypatch, clock):
    """Where there is no room for the whole text, its last pieces are left out."""
    terminal = Terminal(monkeypatch, 40)
    with Line("step", unit="steps") as line:
        walk(line, clock, 1, 9, text="loss 0.1234  psnr 23.91")
        assert terminal.rows()[-1] == "step 9  1 steps/s  loss 0.1234"


def test_messages_of_many_threads_stay_whole(monkeypatch):
    terminal = Terminal(monkeypatch)
    with Line("step", 1000) as line:
        threads = [threading.Thread(target=lambda i=i: [print(f"<{i}>" * 9) for _ in range(20)]) for i in range(4)]
        for thread in threads:
            thread.start()
        for done in range(1, 1001):
            line.show(done)
        for thread in threads:
            thread.join()
    *messages, row, _ = terminal.rows()
    assert sorted(messages) == sorted(f"<{i}>" * 9 for i in range(4) for _ in range(20)) and "1000/1000" in row


@pytest.mark.parametrize("columns", [12, 20, 40, 60, 80, 200])
def test_it_fits_the_terminal(monkeypatch, clock, columns):
    terminal = Terminal(monkeypatch, columns)
    with Line("step", 40_000, unit="steps", first=10_000) as line:
        walk(line, clock, 10_001, 10_500, 0.2, "loss 0.1234  val_loss 0.4321  " + "more " * 40)
        (row,) = terminal.rows()
    assert len(row) < columns and row.startswith("step 10500/"[:columns])
    assert ("26%" in row and "left 1h38m" in row) == (columns >= 40)
    assert ("[##" in row and "5 steps/s" in row) == (columns >= 60) and ("loss 0.1234" in row) == (columns >= 80)


def test_the_line_adapts_when_the_terminal_does(monkeypatch, clock):
    terminal = Terminal(monkeypatch)
    with Line("step", 100, unit="steps") as line:
        walk(line, clock, 1, 10, text="loss 1")
        wide = terminal.rows()[-1]
        fcntl.ioctl(terminal.streams[0].fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        walk(line, clock, 11, 11)
        assert len(terminal.rows()[-1]) < 40 < len(wide)


def test_a_line_within_a_line(monkeypatch, clock):
    """It takes the place of the other one, whose rate does not know of the time between."""
    terminal = Terminal(monkeypatch)
    with Line("step", 100, unit="steps") as line:
        walk(line, clock, 1, 10)
        with Line("validation", 3, unit="batches") as inner:
            walk(inner, clock, 1, 2, 500.0)
            assert terminal.rows()[-1].startswith("validation 2/3  [")
            print("between")
        walk(line, clock, 11, 12)
        assert terminal.rows()[0] == "between" and "12%  1 steps/s  left 1m28s" in terminal.rows()[1]
    assert len(terminal.rows()) == 3


def test_a_line_of_unknown_length_has_no_bar(monkeypatch, clock):
    terminal = Terminal(monkeypatch)
    with Line("reading", unit="files") as line:
        walk(line, clock, 1, 8)
        assert terminal.rows() == ["reading 8  1 files/s"]


def test_an_error_leaves_the_line_and_gives_the_terminal_back(monkeypatch, clock):
    terminal = Terminal(monkeypatch)
    with pytest.raises(RuntimeError), Line("step", 10) as line:
        walk(line, clock, 1, 5)
        raise RuntimeError
    assert terminal.rows()[0].startswith("step 5/10") and terminal.rows()[1:] == [""]


def test_it_is_drawn_ten_times_a_second_at_most(monkeypatch, clock):
    terminal = Terminal(monkeypatch)
    with Line("step", 1000) as line:
        walk(line, clock, 1, 1000, 0.001)
    assert terminal.rows() and 10 <= terminal.sent.count("\r\x1b[K") <= 15


@pytest.mark.parametrize("off", ["a pipe", "TERM", "switch", "another host"])
def test_nothing_is_written_elsewhere(monkeypatch, tmp_path, off):
    terminal = Terminal(monkeypatch)
    if off == "a pipe":
        monkeypatch.setattr(sys, "stdout", (tmp_path / "log").open("w"))
    elif off == "TERM":
        monkeypatch.setenv("TERM", "dumb")
    elif off == "switch":
        monkeypatch.setenv(progress.SWITCH, "0")
    stdout = sys.stdout
    with Line("step", 2, active=off != "another host") as line:
        assert not line.live and sys.stdout is stdout
        line.show(1)
        line.show(2)
    assert terminal.rows() == [""]


def test_a_terminal_that_goes_away_does_not_end_the_work(monkeypatch):
    terminal = Terminal(monkeypatch)
    with Line("step", 10) as line:
        master, terminal.master = terminal.master, -1  # whose number the next one may get
        os.close(master)
        for done in range(1, 11):
            line.show(done)


def test_durations():
    assert (progress.duration(65), progress.duration(3725), progress.duration(float("nan"))) == ("1m05s", "1h02m", "?")


# What uses it: live on a terminal, plain lines elsewhere, never both.


def sampled(pipe, images, steps):
    """What sample.py tells of two batches."""
    line = sample.SamplingLine(pipe, images, active=True)
    with line.live:
        for first in range(0, images, 4):
            for step in range(1, steps + 1):
                progress.time.now += 1
                line.show(Progress(step, steps, first, 4, images))


def test_sampling(monkeypatch, clock, capsys):
    pipe = SimpleNamespace(compile_seconds=0.0)
    monkeypatch.setattr(sample, "time", clock)
    sampled(pipe, 8, 10)
    assert capsys.readouterr().out.splitlines() == [
        "images 1-4 of 8, step 10/10, 0.4 images/s, 10 s left",
        "images 5-8 of 8, step 10/10, 0.4 images/s, 0 s left",
    ]
    terminal = Terminal(monkeypatch)
    sampled(pipe, 8, 10)
    row, after = terminal.rows()
    assert row.startswith("images 8/8  [####") and row.endswith("0.4 images/s  took 0m20s  step 10/10") and not after


def trained(steps, clock, skipped=0):
    """What the loop tells of a training that logs every 10 steps."""
    config = SimpleNamespace(steps=steps, batch_size=4)
    collector = SimpleNamespace(means=lambda pending: {"loss": 0.5, "nonfinite": 1.0, "skipped": skipped})
    task = SimpleNamespace(headline=("loss",))
    written = SimpleNamespace(scalars=lambda *_: None)
    run_clock = SimpleNamespace(stop=lambda n: None, shares=lambda: {"data_wait": 0.0}, rate=2.0)
    with Line("step", steps, unit="steps") as line:
        report = loop._Report(task, config, collector, run_clock, written, print, line)
        for step in range(1, steps + 1):
            clock.now += 0.5
            report.add(step, {})
            if step % 10 == 0:
                report.sum_up()
                report.write(step)


def test_training(monkeypatch, clock, capsys):
    monkeypatch.setattr(loop.nonfinite, "SKIPPED", "skipped")
    trained(20, clock)
    assert capsys.readouterr().out.splitlines() == [
        "step 10/20  loss 0.5  left 0m05s",
        "step 20/20  loss 0.5  left 0m00s",
    ]
    terminal = Terminal(monkeypatch)
    trained(20, clock)
    row, after = terminal.rows()
    assert row.startswith("step 20/20  [####") and row.endswith("2 steps/s  took 0m10s  loss 0.5") and not after
    trained(10, clock, skipped=3)  # what went wrong stays on the screen
    assert "step 10/10  loss 0.5  skipped 3 (not finite)" in terminal.rows()


def test_evaluation(monkeypatch, tmp_path, capsys):
    class Pictures(list):
        name, identity = "runs/a", "a"

        def part(self, first, last):
            print("a message")
            return self[first:last]

    network = SimpleNamespace(name="net")
    extractor = SimpleNamespace(network=network, resize=network, digest="")
    extract = lambda images, taps: {"tap": np.zeros((len(images), 2), np.float32)}  # noqa: E731
    extractor = type("Extractor", (), vars(extractor) | {"__call__": lambda self, *given: extract(*given)})()
    pictures = Pictures([np.zeros((2, 2, 3), np.uint8)] * (kept.PART + 1))

    def features(folder):
        return kept.features_of(pictures, extractor, ("tap",), tmp_path / folder)["tap"].shape

    assert features("a") == (kept.PART + 1, 2)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 and told[1].startswith("runs/a: 256 of 257 pictures, ") and told[1].endswith("(net)")
    terminal = Terminal(monkeypatch)
    assert features("b") == (kept.PART + 1, 2)
    *above, row, _ = terminal.rows()
    assert above == ["a message"] * 2 and row.startswith("a: net 257/257  [####")
