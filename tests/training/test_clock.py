"""The share of the steps' time in which the device waits for data."""

import threading
import time

import pytest

from ldm_jax.training import loop


class Device:
    """A device that works beside the host, and a clock that goes on when the test says so."""

    def __init__(self, seconds):
        self.seconds, self.now, self.ends = seconds, 0.0, []
        self.moved, self.seen = threading.Condition(), threading.local()

    def perf_counter(self):
        return getattr(self.seen, "at", self.now)

    def step(self):
        self.ends.append(max([self.now, *self.ends[-1:]]) + self.seconds)
        return Metrics(self, self.ends[-1])

    def work(self, seconds):
        """The host works for so long. Returns when the threads that wait for a step have seen what is ready."""
        with self.moved:
            self.now += seconds
            self.moved.notify_all()
        while sum(t.name == "step is ready" for t in threading.enumerate()) > sum(end > self.now for end in self.ends):
            time.sleep(0.001)


class Metrics:
    def __init__(self, device, end):
        self.device, self.end = device, end

    def block_until_ready(self):
        with self.device.moved:
            assert self.device.moved.wait_for(lambda: self.device.now >= self.end, 30)
        self.device.seen.at = self.end  # of this thread


@pytest.mark.parametrize("step, batch, share", [(1.0, 1.1, 0.09), (1.0, 2.0, 0.5), (1.0, 0.9, 0.0), (0.0, 1.0, 1.0)])
def test_the_device_waits_only_when_it_has_nothing_to_do(step, batch, share, monkeypatch):
    """Seconds of a step on the device and of a batch on the host, which work at the same time."""
    device = Device(step)
    monkeypatch.setattr(loop, "time", device)
    clock, steps = loop._Clock(0.0), []
    for k in range(50):
        steps.append(device.step())
        if k >= loop.MOST_AHEAD:
            device.work(max(0.0, steps[k - loop.MOST_AHEAD].end - device.now))
        with clock.waiting([steps[k]]):
            device.work(batch)
    device.work(max(0.0, steps[-1].end - device.now))
    clock.stop(50)
    shares = clock.shares()
    assert abs(shares["data_wait"] - share) < 0.02 and abs(shares["goodput"] - (1 - share)) < 0.02, shares


def test_an_error_of_the_step_is_left_to_the_main_thread(capfd):
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("the device is lost")

    clock = loop._Clock(time.perf_counter())
    with clock.waiting([Broken()]):
        time.sleep(0.05)
    assert clock.waited == 0 and not capfd.readouterr().err
