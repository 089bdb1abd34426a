"""The adaptive limit against simulated servers with a fake clock, and the limiter that enforces it."""

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.llm_client.adaptive_concurrency import AdaptiveLimit, AdaptiveLimiter, LimitedCall

MOST = 64
SERVICE_S = 0.2


@dataclass
class Load:
    """Callers who keep a server as full as a limit allows, and what came of it."""

    limit: AdaptiveLimit
    serve: Callable[[float, int], float | None]
    """(time, calls in flight) to the latency of the call that begins; None: refused."""
    now: float = 0.0
    num_answered: int = 0
    num_refused: int = 0
    limits: list[int] = field(default_factory=list)
    """The limit after each call."""
    _running: list[tuple[float, int, LimitedCall, float | None]] = field(default_factory=list)
    _number: Iterator[int] = field(default_factory=itertools.count)

    def run(self, num_calls: int) -> "Load":
        for _ in range(num_calls):
            while len(self._running) < self.limit.limit:
                num_running = len(self._running) + 1
                call, latency_s = self.limit.begin(num_running=num_running), self.serve(self.now, num_running)
                end = self.now + (0.01 if latency_s is None else latency_s)
                heapq.heappush(self._running, (end, next(self._number), call, latency_s))
            self.now, _, call, latency_s = heapq.heappop(self._running)
            if latency_s is None:
                self.num_refused += 1
                self.limit.refused(call)
            else:
                self.num_answered += 1
                self.limit.answered(call, latency_s=latency_s)
            self.limits.append(self.limit.limit)
        return self

    def rate(self, num_calls: int) -> float:
        """Answers a second over the next calls."""
        start, before = self.now, self.num_answered
        self.run(num_calls)
        return (self.num_answered - before) / (self.now - start)


def noise(rng: random.Random) -> float:
    """Replies are of all lengths: mean 1, standard deviation 0.53."""
    return rng.lognormvariate(-0.125, 0.5)


class Workers:
    """A server of so many workers; further calls wait in line."""

    def __init__(self, num: int, *, seed: int):
        self.num = num
        self._free_at: list[float] = []
        self._rng = random.Random(seed)

    def __call__(self, now: float, num_running: int) -> float:
        while len(self._free_at) < self.num:
            heapq.heappush(self._free_at, now)
        while len(self._free_at) > self.num:
            heapq.heappop(self._free_at)
        end = max(now, heapq.heappop(self._free_at)) + SERVICE_S * noise(self._rng)
        heapq.heappush(self._free_at, end)
        return end - now


@pytest.mark.medium
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_workers", [2, 6, 16, 40])
def test_the_limit_comes_near_a_servers_capacity_and_costs_little_of_it(num_workers: int, seed: int):
    load = Load(AdaptiveLimit(MOST), Workers(num_workers, seed=seed)).run(10_000)
    assert load.rate(20_000) > 0.93 * num_workers / SERVICE_S
    steady = load.limits[10_000:]
    assert 0.8 * num_workers <= sum(steady) / len(steady) <= 2 * num_workers


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_batches_is_given_all_though_each_call_takes_three_times_as_long(seed: int):
    """Latency 2 + 0.07 n: 64 calls at a time bring 1.2 times what 32 do. A limit that holds latency below
    twice its minimum would stay at 29, and give away a fifth."""
    rng = random.Random(seed)
    load = Load(AdaptiveLimit(MOST), lambda now, n: (2 + 0.07 * n) * noise(rng)).run(10_000)
    assert load.rate(20_000) > 0.93 * MOST / (2 + 0.07 * MOST)


@pytest.mark.medium
@pytest.mark.parametrize("seed", range(3))
def test_the_limit_follows_a_slowdown_and_the_recovery(seed: int):
    server = Workers(40, seed=seed)
    load = Load(AdaptiveLimit(MOST), server).run(10_000)
    server.num = 5
    load.run(10_000)
    slow = load.limits[-5_000:]
    assert sum(slow) / len(slow) < 12
    server.num = 40
    load.run(30_000)
    assert load.rate(10_000) > 0.9 * 40 / SERVICE_S


@pytest.mark.parametrize("most_at_once", [3, 10, 30])
def test_a_server_that_refuses_is_asked_less(most_at_once: int):
    rng = random.Random(most_at_once)
    load = Load(
        AdaptiveLimit(MOST), lambda now, n: SERVICE_S * noise(rng) if n <= most_at_once else None
    ).run(20_000)
    assert load.num_refused < 0.03 * 20_000
    assert load.rate(10_000) > 0.6 * most_at_once / SERVICE_S


@pytest.mark.parametrize("latency_s", [0.001, 100.0])
def test_without_demand_the_limit_stays(latency_s: float):
    limit = AdaptiveLimit(MOST)
    for _ in range(5_000):
        limit.answered(limit.begin(num_running=MOST // 2), latency_s=latency_s)
    assert limit.limit == MOST


def test_refusals_that_began_together_halve_the_limit_once():
    limit = AdaptiveLimit(MOST)
    calls = [limit.begin(num_running=number) for number in range(1, MOST + 1)]
    for call in calls[:3]:
        limit.refused(call)
    assert limit.limit == MOST, "three of 64 may be bad luck"
    for call in calls[3:]:
        limit.refused(call)
    assert limit.limit == MOST // 2


def test_a_call_in_a_hundred_that_fails_changes_nothing_without_demand():
    limit = AdaptiveLimit(MOST)
    for number in range(5_000):
        call = limit.begin(num_running=MOST // 4)
        if number % 100 == 99:
            limit.refused(call)
        else:
            limit.answered(call, latency_s=SERVICE_S)
    assert limit.limit == MOST


@pytest.mark.parametrize("seed", range(3))
def test_a_call_in_a_hundred_that_fails_at_any_load_changes_little(seed: int):
    server, rng = Workers(40, seed=seed), random.Random(seed)
    load = Load(AdaptiveLimit(MOST), lambda now, n: server(now, n) if rng.random() > 0.01 else None).run(
        10_000
    )
    assert load.rate(20_000) > 0.85 * 40 / SERVICE_S


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.booleans(), st.integers(0, 200), st.floats(0, 100)), max_size=400),
)
def test_the_limit_is_never_below_one_nor_above_the_most(most: int, events: list[tuple[bool, int, float]]):
    limit = AdaptiveLimit(most)
    for is_refused, num_calls, latency_s in events:
        for _ in range(num_calls):
            call = limit.begin(num_running=limit.limit)
            limit.refused(call) if is_refused else limit.answered(call, latency_s=latency_s)
            assert 1 <= limit.limit <= most


async def test_no_more_calls_run_than_the_limit_allows_and_they_begin_in_order():
    permits = AdaptiveLimiter(3)
    begun: list[int] = []
    running = most_running = 0

    async def call(number: int) -> None:
        nonlocal running, most_running
        async with permits.call():
            begun.append(number)
            running += 1
            most_running = max(most_running, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(call(number) for number in range(20)))
    assert (begun, most_running) == (list(range(20)), 3)


async def test_refusals_narrow_the_gate_and_what_is_neither_does_not():
    permits = AdaptiveLimiter(8)
    for _ in range(8):
        with pytest.raises(ValueError):
            async with permits.call():
                raise ValueError("a budget is spent")
    assert permits.limit == 8
    for _ in range(4):
        async with permits.call() as outcome:
            outcome.is_refused = True
    assert permits.limit == 4


async def test_a_cancelled_waiter_leaves_no_hole():
    permits = AdaptiveLimiter(1)
    inside, begun = asyncio.Event(), []

    async def call(number: int) -> None:
        async with permits.call():
            begun.append(number)
            await inside.wait()

    tasks = [asyncio.create_task(call(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()  # it waits
    tasks[0].cancel()  # it runs: the next one's turn comes ...
    await asyncio.sleep(0)
    tasks[2].cancel()  # ... and it is cancelled in that moment
    inside.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert begun[0] == 0 and begun[-1] == 3
    async with asyncio.timeout(5):
        async with permits.call():
            pass


async def test_a_waiter_cancelled_at_the_moment_of_its_grant_returns_the_permit():
    permits = AdaptiveLimiter(1)

    async def call() -> None:
        async with permits.call():
            pass

    async with permits.call():
        waiting, next_one = asyncio.create_task(call()), asyncio.create_task(call())
        await asyncio.sleep(0)
        waiting.cancel()  # it goes on after the place was given away
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await next_one
