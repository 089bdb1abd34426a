"""Adaptive concurrency limit of calls to one server, learned from throughput and refusals while calls run.

A higher limit is kept if it raises throughput. By Little's law (1961) `limit` concurrent calls of mean
`latency` make `limit / latency` calls a second, so that measuring the latency at each limit is enough to
compare them. TCP Vegas (Brakmo, Peterson 1995) and similar limiters for services (Netflix's
concurrency-limits) keep latency near its minimum instead. That starves a server that batches: a model that
takes 64 calls at once needs three times as long for each and answers 20 times as many. Comparing the utility
of rates is the method of PCC (Dong et al., NSDI 2015). Refusals and timeouts halve the limit as in TCP, but
only above a rate: TCP's reaction to each would throttle any endpoint that fails occasionally (BBR v2
tolerates some loss for the same reason).
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from simulators.fair_semaphore import FairSemaphore

STEP = 2**0.5
"""Ratio of neighbouring limits."""
PAYS = 1.06
"""A limit is worth keeping if its rate is this factor above that of the limit below; with perfect scaling it
would be `STEP`, with a saturated server 1."""
CHANGED = 1.5
"""If a rate differs by more than this factor from the last one at the same limit, the server has changed: all
rates are measured again."""
LEAST_CALLS = 64
"""Number of calls for a reliable mean latency; larger if more run concurrently."""
OVERLOADED = (408, 429, 503, 529)
"""HTTP statuses of an overloaded server."""
MOST_REFUSED = 0.05
"""Tolerated refusals per answer, counting at least `LEAST_CALLS` answers."""
HOLD = 4
MOST_HOLD = 32
"""Measurements before the neighbouring limits are tried again: doubled, up to the second, while nothing
changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitedCall:
    """A call in flight, from the limit's view."""

    move: int
    """Number of changes of the limit before the call began."""
    is_full: bool
    """Whether the limit was reached when it began. Only such calls measure a limit."""


class AdaptiveLimit:
    """The limit, on a ladder from 1 to `most`. Does no waiting: the caller reports starts and ends of
    calls."""

    def __init__(self, most: int):
        self._ladder = [most]
        while self._ladder[0] > 1:
            below = round(self._ladder[0] / STEP)
            self._ladder.insert(0, max(1, min(below, self._ladder[0] - 1)))
        self._rung = len(self._ladder) - 1
        self._rates: dict[int, float] = {}
        """Answers a second, by rung; 0 for rungs that were refused."""
        self._hold = HOLD
        self._num_held = 0
        self._num_moves = 0
        self._begin_measurement()

    @property
    def limit(self) -> int:
        """Calls that may be in flight, in [1, most]."""
        return self._ladder[self._rung]

    def begin(self, *, num_running: int) -> LimitedCall:
        """Registers a call; `num_running` are in flight, including itself."""
        return LimitedCall(move=self._num_moves, is_full=num_running >= self.limit)

    def answered(self, call: LimitedCall, *, latency_s: float) -> None:
        """Registers an answer."""
        if call.move != self._num_moves:
            return
        self._num_answered += 1
        if not call.is_full:
            return
        self._num_calls += 1
        # The first round still overlaps with calls that started under another limit.
        if self._num_calls <= self.limit:
            return
        self._sum_s += latency_s
        num_measured = self._num_calls - self.limit
        if num_measured >= max(LEAST_CALLS, 4 * self.limit):
            self._decide(self.limit * num_measured / max(self._sum_s, 1e-9))

    def refused(self, call: LimitedCall) -> None:
        """Registers a refusal or timeout. Calls that began before the last change of the limit do not
        count."""
        if call.move != self._num_moves:
            return
        self._num_refused += 1
        if self._num_refused > MOST_REFUSED * max(self._num_answered, LEAST_CALLS):
            self._rates = {self._rung: 0.0}
            half = max(1, self.limit // 2)
            self._move(max(rung for rung, size in enumerate(self._ladder) if size <= half))

    def _decide(self, rate: float) -> None:
        """Chooses the next rung after the rate of this one was measured."""
        before = self._rates.get(self._rung)
        if before and not 1 / CHANGED < rate / before < CHANGED:
            self._rates, self._hold = {}, HOLD
        self._rates[self._rung] = rate
        rung, top = self._rung, len(self._ladder) - 1
        below, above = self._rates.get(rung - 1), self._rates.get(rung + 1)
        if below is not None and rate < PAYS * below:
            self._move(rung - 1)
        elif rung < top and (above is None or above >= PAYS * rate):
            self._move(rung + 1)
        elif rung and below is None:
            self._move(rung - 1)
        else:
            self._stay()

    def _stay(self) -> None:
        self._num_held += 1
        if self._num_held >= self._hold:
            self._num_held, self._hold = 0, min(2 * self._hold, MOST_HOLD)
            self._rates = {self._rung: self._rates[self._rung]}
        self._begin_measurement()

    def _move(self, rung: int) -> None:
        self._rung = rung
        self._num_moves += 1
        self._begin_measurement()

    def _begin_measurement(self) -> None:
        self._num_calls = self._num_answered = self._num_refused = 0
        self._sum_s = 0.0


class AdaptiveLimiter:
    """Semaphore whose capacity is the adaptive limit; calls start in the order of arrival. For one event
    loop."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic):
        self._limit = AdaptiveLimit(most)
        self._clock = clock
        self._permits = FairSemaphore(most)

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return self._limit.limit

    @asynccontextmanager
    async def call(self) -> AsyncIterator["CallOutcome"]:
        """Waits for a permit and holds it in the block; the limit learns from the `CallOutcome`."""
        await self._permits.acquire()
        num_running = self._permits.capacity - self._permits.num_free
        call, began, outcome = self._limit.begin(num_running=num_running), self._clock(), CallOutcome()
        try:
            yield outcome
        finally:
            if outcome.is_refused:
                self._limit.refused(call)
            elif outcome.is_answered:
                self._limit.answered(call, latency_s=self._clock() - began)
            self._permits.resize(self.limit)
            self._permits.release()


@dataclass(kw_only=True, slots=True)
class CallOutcome:
    """Result of a call, set by the caller; if left unset, the limit learns nothing from it."""

    is_answered: bool = False
    is_refused: bool = False
