"""One line on a terminal that tells how far long work is. It is rewritten in place; messages appear above it.

    with progress.Line("step", 4000, unit="steps") as line:
        for step in range(1, 4001):
            line.show(step, "loss 0.1234")

    step 1200/4000  [#######.................]  30%  12.3 steps/s  left 3m48s  loss 0.1234

Only where standard output is a terminal (`Line.live`). Elsewhere a Line does nothing: the work prints plain lines, as
files and pipes want them. LDM_JAX_PROGRESS=0 turns lines off. A Line that is made within another one takes its place
until it is closed; the clock of the other one stands still meanwhile.
"""

import logging
import math
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, TextIO

SWITCH = "LDM_JAX_PROGRESS"
EVERY = 0.1  # seconds between two drawings, at least
WINDOW = 30.0  # seconds that the rate is taken over
BAR, LEAST_BAR = 26, 10  # characters of the bar, with its brackets
ERASE = "\r\x1b[K"

_lock = threading.RLock()  # of all below
_lines: list["Line"] = []  # those that are open; the last one is shown
_streams: dict[str, Any] = {}  # what sys.stdout and sys.stderr were before the first one


def duration(seconds: float) -> str:
    """3725 -> '1h02m'."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def on_terminal() -> bool:
    """Whether standard output is a terminal that can rewrite a line, and nobody has turned this off."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and os.environ.get(SWITCH) != "0"


class Line:
    """How far `what` is: `done` of `total` units. total: 0 = not known, then there is no bar.

    first: what was done before. active: False for a Line that never shows itself, as of all hosts but the first.
    """

    def __init__(self, what: str, total: int = 0, *, unit: str = "", first: float = 0, active: bool = True):
        self.what, self.total, self.unit, self.first = what, total, unit, first
        self.done, self.text = first, ""
        self.began, self.drawn = time.perf_counter(), -math.inf
        self._window: deque[tuple[float, float]] = deque()  # (time, done) of the last seconds
        self.live = active and on_terminal()
        if self.live:
            with _lock:
                _take_terminal()
                _lines.append(self)
                _draw()

    def show(self, done: float, text: str = "") -> None:
        """Says how far it is. The line is drawn some times a second at most, and at the end."""
        if not self.live:
            return
        with _lock:
            now, self.done, self.text = time.perf_counter(), done, text
            if now - self.drawn < EVERY and done != self.total:
                return
            if done > self.first:  # the time before the first unit is done is that of the compiler
                self._window.append((now, done))
            while len(self._window) > 2 and now - self._window[0][0] > WINDOW:
                self._window.popleft()
            _draw()

    def close(self) -> None:
        """The line stays where it is; one within another one goes away. May be called more than once."""
        with _lock:
            if not self.live or self not in _lines:
                return
            inner = len(_lines) > 1
            if inner:
                _write(ERASE)
            else:
                _draw()
                _write("\n")
            _lines.remove(self)
            for line in _lines:
                line._stand_still(time.perf_counter() - self.began)
            if _lines:
                _draw()
            else:
                _give_terminal_back()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def rate(self) -> float:
        """Units a second, not a number before there are two times to compare."""
        if len(self._window) < 2:
            return math.nan
        (t0, d0), (t1, d1) = self._window[0], self._window[-1]
        return (d1 - d0) / max(t1 - t0, 1e-9)

    def _stand_still(self, seconds: float) -> None:
        self.began += seconds
        self._window = deque((t + seconds, done) for t, done in self._window)

    def told(self, width: int) -> str:
        """The line, in `width` characters at most. Where there is no room, its parts go one after the other: first the
        text, then the rate, then the bar."""
        rate, head = self.rate(), f"{self.what} {int(self.done)}" + (f"/{self.total}" if self.total else "")
        speed = f"{rate:.3g} {self.unit}/s" if math.isfinite(rate) else ""
        share = min(max(self.done / self.total, 0.0), 1.0) if self.total else 0.0
        left = ""
        if self.total and self.done >= self.total:
            left = f"took {duration(time.perf_counter() - self.began)}"
        elif self.total and rate > 0:
            left = f"left {duration((self.total - self.done) / rate)}"
        wanted = [head, "", f"{share:.0%}" if self.total else "", speed, left, self.text]
        shown, room = [""] * len(wanted), width
        for i in (0, 2, 4, 1, 3, 5):
            part = wanted[i] if i != 1 else "-" * LEAST_BAR * bool(self.total)
            part = part[:room] if i == 0 else _whole_pieces(part, room) if i == 5 else part
            if part and len(part) <= room:
                shown[i] = part
                room -= len(part) + 2
        if shown[1]:
            shown[1] = _bar(share, min(LEAST_BAR + max(room, 0), BAR))
        return "  ".join(part for part in shown if part)


def _whole_pieces(text: str, room: int) -> str:
    """The first of the pieces "loss 0.1234  psnr 23.9", between two spaces, as many as `room` characters hold."""
    pieces = text.split("  ")
    while len("  ".join(pieces)) > room:
        pieces.pop()
        if not pieces:
            return ""
    return "  ".join(pieces)


def _bar(share: float, size: int) -> str:
    """`size` characters, with brackets."""
    full = int(share * (size - 2))
    return f"[{'#' * full}{'.' * (size - 2 - full)}]"


class _Above:
    """A stream of the terminal while a line is shown: whole lines that are written to it appear above that line."""

    def __init__(self, stream: TextIO):
        self._stream, self._begun = stream, {}  # of each thread the piece of a line that it has begun

    def write(self, text: str) -> int:
        with _lock:
            thread = threading.get_ident()  # print() writes its text and the end of the line one after the other
            whole, newline, self._begun[thread] = (self._begun.get(thread, "") + text).rpartition("\n")
            if newline:
                _write(ERASE)
                self._stream.write(whole + newline)
                self._stream.flush()
                _draw()
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Writes the pieces of lines that are left."""
        with suppress(OSError, ValueError):
            self._stream.write("".join(self._begun.values()))
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def _take_terminal() -> None:
    for name in () if _streams else ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.isatty():
            _streams[name] = stream
            setattr(sys, name, _Above(stream))
            _redirect_logging(stream, getattr(sys, name))


def _give_terminal_back() -> None:
    for name, stream in _streams.items():
        if isinstance(above := getattr(sys, name), _Above):
            above.end()
            setattr(sys, name, stream)
            _redirect_logging(above, stream)
    _streams.clear()


def _redirect_logging(old: Any, new: Any) -> None:
    """Handlers of logging, and absl's own, keep the stream that there was when they were made."""
    loggers = [logging.root, *logging.Logger.manager.loggerDict.values()]
    for handler in {h for logger in loggers for h in getattr(logger, "handlers", ())}:
        handler = getattr(handler, "python_handler", handler)  # absl's handler holds another one
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # where the terminal is gone, the work goes on
        _streams["stdout"].write(text)
        _streams["stdout"].flush()


def _draw() -> None:
    if _lines:
        line = _lines[-1]
        line.drawn = time.perf_counter()
        _write(f"{ERASE}{line.told(_width() - 1)}")  # not the last column: some terminals go on to the next row there


def _width() -> int:
    try:
        return os.get_terminal_size(_streams["stdout"].fileno()).columns or 80
    except (OSError, ValueError):
        return 80
