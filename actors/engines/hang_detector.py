"""Whether vLLM still moves: a core that hangs fails no request and raises nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

ODD_SILENCE_S = 3.0
"""From here on it is asked whether vLLM's processes work at all."""
LEAST_WORK_S = 0.1
"""Processor time, of all processes together since they were last seen at work. Threads that only wait use
less."""
LONGEST_GAP_S = 5.0
"""Between two questions; what was not asked for longer counts as so much, since nobody has looked."""


def work_of_children() -> float:
    """Processor seconds that the living children of this process have used, and all of theirs."""
    total_s = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total_s += sum(child.cpu_times()[:4])  # user and system, its own and of children that have ended
    return total_s


class HangDetector:
    """Seconds since vLLM's last step, while it has something to do. For one event loop."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        work: Callable[[], float] = work_of_children,
    ):
        """`work` gives the processor seconds that vLLM has used so far."""
        self._clock, self._work = clock, work
        self._worked_s = 0.0
        self._asked_at = clock()
        self._still_s = 0.0
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

    def still_s(self) -> float:
        """Seconds for which it has neither ended a step nor used a processor, as far as calls of this have
        seen: a step that takes long uses one. 0 where it has nothing to do, or pauses."""
        now, silent_s = self._clock(), self.silent_s
        gap_s, self._asked_at = now - self._asked_at, now
        if silent_s < ODD_SILENCE_S:
            self._still_s = 0.0
            return 0.0
        worked_s = self._work()
        if abs(worked_s - self._worked_s) > LEAST_WORK_S:  # less than before where a child has ended
            self._worked_s, self._still_s = worked_s, 0.0
        else:
            self._still_s = min(self._still_s + min(gap_s, LONGEST_GAP_S), silent_s)
        return self._still_s
