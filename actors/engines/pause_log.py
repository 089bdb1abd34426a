"""For how long an engine computed a request: between vLLM's own stamps, without the pauses in which weights
were loaded. Pure."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_PAUSES = 256
"""The latest are remembered; no request outlives so many optimizer steps."""


class PauseLog:
    """When the engine stood still. For one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        """`clock` is the one that vLLM stamps by."""
        self._clock = clock
        self._pauses: deque[tuple[float, float]] = deque(maxlen=MOST_PAUSES)
        """(begin, end) of each, in order."""

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The engine computes nothing inside the block; never two at the same time."""
        begin = self._clock()
        try:
            yield
        finally:
            self._pauses.append((begin, self._clock()))

    @property
    def latest(self) -> tuple[float, float]:
        """When the last pause began and when it ended."""
        return self._pauses[-1]

    def computed_s(self, begin: float, end: float) -> float:
        """Seconds from `begin` to `end`, both in the past, without the pauses between them."""
        seconds = max(0.0, end - begin)
        for pause_begin, pause_end in reversed(self._pauses):
            if pause_end <= begin:
                break
            seconds -= max(0.0, min(end, pause_end) - max(begin, pause_begin))
        return seconds
