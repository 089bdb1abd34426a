"""Adaptive concurrency limit of calls to one server, learned from throughput and refusals while calls run.

A limit that pays is one whose calls come back sooner, altogether, than with fewer at a time. By Little's law
(1961) `limit` calls that take `latency` each make `limit / latency` a second, so that a wait for the latency
of each limit is enough to compare them. TCP Vegas (Brakmo, Peterson 1995) and its kin for services (Netflix's
concurrency-limits) hold latency near its minimum instead. That starves a server that batches: a model that
takes 64 calls at once needs three times as long for each and answers 20 times as many. Comparing what each
rate brings is PCC's way (Dong et al., NSDI 2015). Refusals and time-outs halve the limit as in TCP, but only
once they are too many to be bad luck: TCP's answer to each would make a trickle of any endpoint that fails
now and then (BBR v2 tolerates some loss for the same reason).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

STEP = 2**0.5
"""Ratio of neighbouring limits."""
PAYS = 1.06
"""A limit pays if it answers this much more than the one below; one that scaled fully would answer `STEP`
times as much, one that only fills the server's waiting list no more."""
CHANGED = 1.5
"""A rate that differs by more from the last one at the same limit is another server's: everything is
measured again."""
LEAST_CALLS = 64
"""Number of calls for a reliable mean latency; larger if more run concurrently."""
OVERLOADED = (408, 429, 503, 529)
"""HTTP statuses of a server that has too much to do."""
MOST_REFUSED = 0.05
"""Refusals for each answer that are taken for bad luck; `LEAST_CALLS` answers are counted where there are
fewer."""
HOLD = 4
MOST_HOLD = 32
"""Measurements between two looks at the neighbours: doubled, up to the second, as long as nothing changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitedCall:
    """A call in flight, as its limit knows it."""

    move: int
    """Moves of the limit before it began."""
    is_full: bool
    """No other call could have started in parallel. Only such calls measure a limit."""


class AdaptiveLimit:
    """The limit, on a ladder from 1 to `most`. Pure: the caller reports starts and ends of calls."""

    def __init__(self, most: int):
        self._ladder = [most]
        while self._ladder[0] > 1:
            below = round(self._ladder[0] / STEP)
            self._ladder.insert(0, max(1, min(below, self._ladder[0] - 1)))
        self._rung = len(self._ladder) - 1
        self._rates: dict[int, float] = {}
        """Answers a second, by rung; of rungs that were refused 0."""
        self._hold = HOLD
        self._num_held = 0
        self._num_moves = 0
        self._begin_measurement()

    @property
    def limit(self) -> int:
        """Calls that may be in flight, in [1, most]."""
        return self._ladder[self._rung]

    def begin(self, *, num_running: int) -> LimitedCall:
        """A call begins; `num_running` are in flight, itself among them."""
        return LimitedCall(move=self._num_moves, is_full=num_running >= self.limit)

    def answered(self, call: LimitedCall, *, latency_s: float) -> None:
        """The call came back with an answer."""
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
        """The server had no room for it, or no time. What began before the limit moved no longer counts."""
        if call.move != self._num_moves:
            return
        self._num_refused += 1
        if self._num_refused > MOST_REFUSED * max(self._num_answered, LEAST_CALLS):
            self._rates = {self._rung: 0.0}
            half = max(1, self.limit // 2)
            self._move(max(rung for rung, size in enumerate(self._ladder) if size <= half))

    def _decide(self, rate: float) -> None:
        """The next rung after the rate of this one was measured."""
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


class CallPermits:
    """Lets calls begin as the limit allows, in the order in which they came. For one event loop."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic):
        self._limit = AdaptiveLimit(most)
        self._clock = clock
        self._num_running = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return self._limit.limit

    @asynccontextmanager
    async def call(self) -> AsyncIterator["CallOutcome"]:
        """Waits until a call may begin, which takes the block; what is set in `CallOutcome` is learnt
        from."""
        await self._enter()
        call, began, outcome = self._limit.begin(num_running=self._num_running), self._clock(), CallOutcome()
        try:
            yield outcome
        finally:
            self._num_running -= 1
            if outcome.is_refused:
                self._limit.refused(call)
            elif outcome.is_answered:
                self._limit.answered(call, latency_s=self._clock() - began)
            self._admit()

    async def _enter(self) -> None:
        if not self._queue and self._num_running < self.limit:
            self._num_running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the moment of its cancellation
                self._num_running -= 1
                self._admit()
            elif turn in self._queue:  # else it was passed over already
                self._queue.remove(turn)
            raise

    def _admit(self) -> None:
        while self._queue and self._num_running < self.limit:
            turn = self._queue.popleft()
            if not turn.cancelled():
                self._num_running += 1
                turn.set_result(None)


@dataclass(kw_only=True, slots=True)
class CallOutcome:
    """How a call ended, set by the caller; if left unset, nothing is learned from it."""

    is_answered: bool = False
    is_refused: bool = False
