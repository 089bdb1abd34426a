"""Whether vLLM still moves: a core that hangs fails no request and raises nothing. Pure."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Pulse:
    """Seconds since vLLM's last step, while it has something to do. For one event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._num_requests = 0
        self._num_pauses = 0
        self._beat_at = clock()

    def beat(self) -> None:
        """vLLM has ended a step."""
        self._beat_at = self._clock()

    @contextmanager
    def request(self) -> Iterator[None]:
        """vLLM has a request inside the block."""
        if not self._num_requests:
            self.beat()  # it was idle until now
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """vLLM stands still on purpose inside the block, whose time limit is somebody else's."""
        self._num_pauses += 1
        try:
            yield
        finally:
            self._num_pauses -= 1
            self.beat()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked of vLLM, so that nobody would notice if it hung."""
        return not self._num_requests and not self._num_pauses

    @property
    def silent_s(self) -> float:
        """0 where it has nothing to do, or pauses."""
        is_busy = self._num_requests and not self._num_pauses
        return self._clock() - self._beat_at if is_busy else 0.0
