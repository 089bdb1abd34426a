"""Ctrl-C and `kill`, taken between two steps: a step that has begun is ended and saved, so that nothing is
trained twice."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cluster.console.progress import say


class StopSignal:
    """Whether somebody asked this process to stop."""

    def __init__(self) -> None:
        self.asked = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("stopping after this step, then saving; once more stops at once, without saving")


@contextmanager
def stop_between_steps() -> Iterator[StopSignal]:
    """While it lasts, the first signal is only noted and the second raises KeyboardInterrupt. Main thread
    only."""
    stop = StopSignal()
    before = {number: signal.signal(number, stop._note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
