"""The target number of dialogues, by hand: with headroom 1.5 and whole groups."""

import asyncio
import math
import random
import selectors
from typing import Any

import pytest

from actors.concurrency_target import HEADROOM, ConcurrencyTarget
from actors.dialogue_slots import DialogueSlots
from actors.trajectory import GroupSummary
from tests.fakes import make_summary

pytestmark = pytest.mark.medium


def group(
    gym: str, *, policy_s: float, user_s: float = 0.0, tool_s: float = 0.0, queue_s: float = 0.0
) -> GroupSummary:
    return make_summary([1.0], gym=gym, policy_s=policy_s, user_s=user_s, tool_s=tool_s, queue_s=queue_s)


def target_of(*, capacity: float = 64, max_dialogues: int = 4096, group_size: int = 8) -> ConcurrencyTarget:
    return ConcurrencyTarget(engine_capacity=capacity, max_dialogues=max_dialogues, group_size=group_size)


def test_as_many_dialogues_as_keep_the_engines_busy():
    """A quarter of the time with an engine: four dialogues for each sequence, by Little's law."""
    target = target_of()
    target.begin("travel")
    target.begin("travel")
    target.end(group("travel", policy_s=2.0, user_s=5.0, tool_s=1.0, queue_s=100.0))
    assert target.engine_share("travel") == pytest.approx(0.25)
    assert target.num_dialogues() == int(HEADROOM * 64 * 4) + 7


def test_the_target_is_the_maximum_while_a_share_is_unknown():
    target = target_of(max_dialogues=512)
    assert target.num_dialogues() == 512
    target.begin("travel")
    assert target.num_dialogues() == 512
    target.end(group("travel", policy_s=1.0))
    target.begin("function")
    assert target.num_dialogues() == 512


def test_the_target_follows_a_mix_with_slower_users_at_once():
    target = target_of()
    for gym, user_s in (("function", 0.0), ("travel", 9.0)):
        target.begin(gym)
        target.end(group(gym, policy_s=1.0, user_s=user_s))
    sizes = []
    for gyms in (["function"], ["travel"] * 3, ["travel"] * 96):
        for gym in gyms:
            target.begin(gym)
        sizes.append(target.num_dialogues())
    assert sizes == [int(64 * HEADROOM) + 7, int(64 * HEADROOM / 0.325) + 7, int(64 * HEADROOM / 0.109) + 7]


def test_the_target_is_at_least_a_group_and_at_most_the_maximum():
    few = target_of(capacity=0.5, group_size=8)
    many = target_of(max_dialogues=100)
    unknown = target_of(capacity=math.inf, max_dialogues=100)
    for target, user_s in ((few, 0.0), (many, 1000.0), (unknown, 0.0)):
        target.begin("travel")
        target.begin("travel")
        target.end(group("travel", policy_s=1.0, user_s=user_s))
    assert (few.num_dialogues(), many.num_dialogues(), unknown.num_dialogues()) == (8, 100, 100)


def test_a_policy_that_takes_no_time_gets_the_maximum():
    target = target_of(max_dialogues=100)
    target.begin("travel")
    target.begin("travel")
    target.end(group("travel", policy_s=0.0, tool_s=1.0))
    assert target.num_dialogues() == 100


class HurriedLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: its clock jumps to the next event."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        self._now, poll = 0.0, selector.select

        def select(timeout: float | None = None) -> Any:
            self._now += timeout or 0.0
            return poll(0)

        selector.select = select
        super().__init__(selector)

    def time(self) -> float:
        return self._now


async def play(*, capacity: int, user_s: float, max_dialogues: int, adapts: bool) -> tuple[float, float]:
    """(share of the engine's time in which it was busy, seconds of a mean dialogue) while 300 groups of 8
    dialogues of 2 to 12 turns begin; a completion takes 0.1 s."""
    loop, rng = asyncio.get_running_loop(), random.Random(0)
    engine, slots = asyncio.Semaphore(capacity), DialogueSlots(max_dialogues)
    target = target_of(capacity=capacity, max_dialogues=max_dialogues)
    busy_s, durations, began, busy_before = 0.0, [], 0.0, 0.0

    async def dialogue() -> tuple[float, float]:
        nonlocal busy_s
        met_at, num_turns, elsewhere_s = loop.time(), rng.randint(2, 12), 0.0
        for _ in range(num_turns):
            async with engine:
                await asyncio.sleep(0.1)
            busy_s += 0.1
            waits_s = rng.expovariate(1 / user_s)
            await asyncio.sleep(waits_s)
            elsewhere_s += waits_s
        slots.release()
        durations.append(loop.time() - met_at)
        return 0.1 * num_turns, elsewhere_s

    async def roll() -> None:
        spent = await asyncio.gather(*(dialogue() for _ in range(8)))
        policy_s, elsewhere_s = map(sum, zip(*spent, strict=True))
        target.end(group("travel", policy_s=policy_s, user_s=elsewhere_s))
        if adapts:
            slots.resize(target.num_dialogues())

    async with asyncio.TaskGroup() as groups:
        for number in range(300):
            await slots.acquire(8)
            if number == 100:  # the beginning is over
                began, busy_before = loop.time(), busy_s
                durations.clear()
            target.begin("travel")
            groups.create_task(roll())
        share = (busy_s - busy_before) / (loop.time() - began) / capacity
        duration_s = sum(durations) / len(durations)
    return share, duration_s


@pytest.mark.parametrize("user_s", [0.01, 0.2, 0.5])
def test_engines_stay_busy_and_dialogues_do_not_queue_for_them(user_s: float):
    def run(*, adapts: bool, max_dialogues: int) -> tuple[float, float]:
        with asyncio.Runner(loop_factory=HurriedLoop) as runner:
            return runner.run(play(capacity=16, user_s=user_s, max_dialogues=max_dialogues, adapts=adapts))

    wanted = HEADROOM * 16 * (0.1 + user_s) / 0.1
    crowded_share, crowded_s = run(adapts=False, max_dialogues=int(3 * wanted))
    share, duration_s = run(adapts=True, max_dialogues=int(3 * wanted))
    assert share > 0.98 * crowded_share > 0.95
    assert duration_s < 0.6 * crowded_s
