"""Time keeping of one engine: how long it was idle or paused, for how long it computed a request, and whether
vLLM hangs. Pure; knows no vLLM and no Ray.

A core of vLLM that hangs fails no request and raises nothing. It shows only in that requests wait, no step
ends and, on CPU, no process of vLLM uses a processor.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

MAX_PAUSES = 256
"""Pauses remembered, the latest; no request outlives so many optimizer steps."""
SUSPICIOUS_SILENCE_S = 3.0
"""Time without a step after which the processor time of vLLM's processes is checked."""
MIN_CPU_S = 0.1
"""Processor time, of all processes together since the last check that found them working, above which they
work. Threads that only wait use less."""
MAX_CHECK_GAP_S = 5.0
"""Time between two checks that counts at most: nothing is known of a longer gap."""


def cpu_seconds_of_children() -> float:
    """Processor seconds that the living children of this process have used, and all of theirs."""
    total_s = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total_s += sum(child.cpu_times()[:4])  # user and system, its own and of children that have ended
    return total_s


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineUsage:
    """One engine between two readings of its clock.

    Example: `EngineUsage(duration_s=10.0, idle_s=6.0, paused_s=0.5, request_s=5.0)`.
    """

    duration_s: float
    idle_s: float
    """Seconds without a request in flight."""
    paused_s: float
    """Seconds in which weights were loaded: requests stood still, if there were any."""
    request_s: float
    """Seconds in flight, summed over requests, including those that wait for weights."""


class EngineClock:
    """Integrates requests and pauses over time. For one event loop."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.monotonic,
        cpu_seconds: Callable[[], float] = cpu_seconds_of_children,
    ):
        """`now` must be the clock of vLLM's timestamps; `cpu_seconds` gives the processor time that vLLM has
        used so far."""
        self._now, self._cpu_seconds = now, cpu_seconds
        self._is_paused = False
        self._num_requests = 0
        self._num_core_calls = 0
        self._pauses: deque[tuple[float, float]] = deque(maxlen=MAX_PAUSES)
        """(begin, end) of each, in order."""
        self._advanced_at = self._stepped_at = self._checked_at = now()
        self._stalled_s = self._cpu_s = 0.0
        self._reset()

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
    def core_call(self) -> Iterator[None]:
        """vLLM's core has something to do inside the block. Requests that wait for weights have not reached
        it."""
        if not self._num_core_calls:
            self.step()  # it was idle until now
        self._num_core_calls += 1
        try:
            yield
        finally:
            self._num_core_calls -= 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """The engine computes nothing inside the block, on purpose; never two pauses at the same time."""
        self._advance()
        begin, self._is_paused = self._advanced_at, True
        try:
            yield
        finally:
            self._advance()
            self._is_paused = False
            self._pauses.append((begin, self._advanced_at))
            self.step()

    def step(self) -> None:
        """vLLM's core has ended a step."""
        self._stepped_at = self._now()

    def read_usage(self) -> EngineUsage:
        """The time since the last reading, or since the clock was made; requests in flight continue."""
        self._advance()
        usage = EngineUsage(
            duration_s=self._duration_s,
            idle_s=self._idle_s,
            paused_s=self._paused_s,
            request_s=self._request_s,
        )
        self._reset()
        return usage

    @property
    def latest_pause(self) -> tuple[float, float]:
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

    @property
    def is_core_idle(self) -> bool:
        """Whether vLLM's core has nothing to do, so that a hang would not show."""
        return not self._num_core_calls and not self._is_paused

    @property
    def silent_s(self) -> float:
        """Seconds since the core's last step; 0 while it has nothing to do or is paused."""
        is_busy = self._num_core_calls and not self._is_paused
        return self._now() - self._stepped_at if is_busy else 0.0

    def check_stalled_s(self) -> float:
        """Seconds for which the core has neither ended a step nor used a processor, as far as calls of this
        have seen: a step that takes long uses one. 0 while it has nothing to do or is paused."""
        now, silent_s = self._now(), self.silent_s
        gap_s, self._checked_at = now - self._checked_at, now
        if silent_s < SUSPICIOUS_SILENCE_S:
            self._stalled_s = 0.0
            return 0.0
        cpu_s = self._cpu_seconds()
        if abs(cpu_s - self._cpu_s) > MIN_CPU_S:  # less than before if a child has ended
            self._cpu_s, self._stalled_s = cpu_s, 0.0
        else:
            self._stalled_s = min(self._stalled_s + min(gap_s, MAX_CHECK_GAP_S), silent_s)
        return self._stalled_s

    def _advance(self) -> None:
        """Adds the time since the last change to the sums."""
        now = self._now()
        passed, self._advanced_at = now - self._advanced_at, now
        self._duration_s += passed
        self._request_s += passed * self._num_requests
        self._idle_s += 0.0 if self._num_requests else passed
        self._paused_s += passed if self._is_paused else 0.0

    def _reset(self) -> None:
        self._duration_s = self._idle_s = self._paused_s = self._request_s = 0.0
