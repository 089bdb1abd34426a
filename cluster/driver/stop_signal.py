"""Deferred handling of SIGINT and SIGTERM: the current step is finished and saved first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cluster.console.log import info


class StopSignal:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        info("stopping after this step, then saving; a second signal stops at once, without saving")


@contextmanager
def stop_between_steps() -> Iterator[StopSignal]:
    """While it lasts, the first signal is only recorded and the second raises KeyboardInterrupt. Main thread
    only."""
    stop = StopSignal()
    before = {number: signal.signal(number, stop._handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
