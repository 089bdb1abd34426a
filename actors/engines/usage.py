"""What an engine's time went to: a meter of requests in flight. Pure; knows no vLLM and no Ray."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineUsage:
    """One engine between two readings of its meter."""

    duration_s: float
    idle_s: float
    """Seconds without a request in flight."""
    paused_s: float
    """Seconds in which weights were loaded: requests stood still, if there were any."""
    request_s: float
    """Seconds in flight, summed over requests; those that wait for weights are in flight, too."""


class UsageMeter:
    """Counts what is in flight, and integrates it over time. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._num_requests = 0
        self._is_paused = False
        self._since = clock()
        self._clear()

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is in flight inside the block, however it ends."""
        self._advance()
        self._num_requests += 1
        try:
            yield
        finally:
            self._advance()
            self._num_requests -= 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The engine stands still inside the block; never two at the same time."""
        self._advance()
        self._is_paused = True
        try:
            yield
        finally:
            self._advance()
            self._is_paused = False

    def read(self) -> EngineUsage:
        """What was since the last reading, or since the meter was made; what is in flight goes on."""
        self._advance()
        usage = EngineUsage(
            duration_s=self._duration_s,
            idle_s=self._idle_s,
            paused_s=self._paused_s,
            request_s=self._request_s,
        )
        self._clear()
        return usage

    def _advance(self) -> None:
        """Books the time since the last change of anything."""
        now = self._clock()
        passed, self._since = now - self._since, now
        self._duration_s += passed
        self._request_s += passed * self._num_requests
        self._idle_s += 0.0 if self._num_requests else passed
        self._paused_s += passed if self._is_paused else 0.0

    def _clear(self) -> None:
        self._duration_s = self._idle_s = self._paused_s = self._request_s = 0.0
