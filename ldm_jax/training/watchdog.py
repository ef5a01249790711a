"""Ends a run that hangs, and shows where."""

import faulthandler
import sys


class Watchdog:
    """If it is not renewed for `minutes`, the stacks of all threads go to stderr, and the process ends with the code 1.
    It begins with the first `renew`. 0 minutes = off."""

    def __init__(self, minutes: float):
        self.seconds = minutes * 60

    def renew(self) -> None:
        if self.seconds > 0:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__)

    def close(self) -> None:
        if self.seconds > 0:
            faulthandler.cancel_dump_traceback_later()
