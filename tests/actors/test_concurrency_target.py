"""How many dialogues are wanted, by hand: with headroom 1.5 and whole groups."""

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


def group(
    gym: str, *, policy_s: float, user_s: float = 0.0, tool_s: float = 0.0, queue_s: float = 0.0
) -> GroupSummary:
    return make_summary([1.0], gym=gym, policy_s=policy_s, user_s=user_s, tool_s=tool_s, queue_s=queue_s)


def demand_of(*, places: float = 64, most: int = 4096, group_size: int = 8) -> ConcurrencyTarget:
    return ConcurrencyTarget(places=places, most=most, group_size=group_size)


def test_as_many_dialogues_as_keep_the_places_busy():
    """A quarter of the time with an engine: four dialogues a place, by Little's law."""
    demand = demand_of()
    demand.begin("travel")
    demand.begin("travel")
    demand.end(group("travel", policy_s=2.0, user_s=5.0, tool_s=1.0, queue_s=100.0))
    assert demand.share("travel") == pytest.approx(0.25)
    assert demand.num_dialogues() == int(HEADROOM * 64 * 4) + 7


def test_nothing_is_held_back_for_what_is_not_known():
    demand = demand_of(most=512)
    assert demand.num_dialogues() == 512
    demand.begin("travel")
    assert demand.num_dialogues() == 512
    demand.end(group("travel", policy_s=1.0))
    demand.begin("function")
    assert demand.num_dialogues() == 512


def test_a_mix_that_turns_to_slower_users_is_followed_at_once():
    demand = demand_of()
    for gym, user_s in (("function", 0.0), ("travel", 9.0)):
        demand.begin(gym)
        demand.end(group(gym, policy_s=1.0, user_s=user_s))
    sizes = []
    for gyms in (["function"], ["travel"] * 3, ["travel"] * 96):
        for gym in gyms:
            demand.begin(gym)
        sizes.append(demand.num_dialogues())
    assert sizes == [int(64 * HEADROOM) + 7, int(64 * HEADROOM / 0.325) + 7, int(64 * HEADROOM / 0.109) + 7]


def test_never_fewer_than_a_group_nor_more_than_the_most():
    few = demand_of(places=0.5, group_size=8)
    many = demand_of(most=100)
    unknown = demand_of(places=math.inf, most=100)
    for demand, user_s in ((few, 0.0), (many, 1000.0), (unknown, 0.0)):
        demand.begin("travel")
        demand.begin("travel")
        demand.end(group("travel", policy_s=1.0, user_s=user_s))
    assert (few.num_dialogues(), many.num_dialogues(), unknown.num_dialogues()) == (8, 100, 100)


def test_a_policy_that_takes_no_time_asks_for_all():
    demand = demand_of(most=100)
    demand.begin("travel")
    demand.begin("travel")
    demand.end(group("travel", policy_s=0.0, tool_s=1.0))
    assert demand.num_dialogues() == 100


class HurriedLoop(asyncio.SelectorEventLoop):
    """An event loop in which nobody ever waits: its clock jumps to whatever comes next."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        self._now, look = 0.0, selector.select

        def select(timeout: float | None = None) -> Any:
            self._now += timeout or 0.0
            return look(0)

        selector.select = select
        super().__init__(selector)

    def time(self) -> float:
        return self._now


async def play(*, places: int, user_s: float, most: int, adapts: bool) -> tuple[float, float]:
    """(share of the engine's time in which it was busy, seconds of a mean dialogue) while 300 groups of 8
    dialogues of 2 to 12 turns begin; a completion takes 0.1 s."""
    loop, rng = asyncio.get_running_loop(), random.Random(0)
    engine, room = asyncio.Semaphore(places), DialogueSlots(most)
    demand = demand_of(places=places, most=most)
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
        room.leave()
        durations.append(loop.time() - met_at)
        return 0.1 * num_turns, elsewhere_s

    async def roll() -> None:
        spent = await asyncio.gather(*(dialogue() for _ in range(8)))
        policy_s, elsewhere_s = map(sum, zip(*spent, strict=True))
        demand.end(group("travel", policy_s=policy_s, user_s=elsewhere_s))
        if adapts:
            room.resize(demand.num_dialogues())

    async with asyncio.TaskGroup() as groups:
        for number in range(300):
            await room.enter(8)
            if number == 100:  # the beginning is over
                began, busy_before = loop.time(), busy_s
                durations.clear()
            demand.begin("travel")
            groups.create_task(roll())
        share = (busy_s - busy_before) / (loop.time() - began) / places
        duration_s = sum(durations) / len(durations)
    return share, duration_s


@pytest.mark.parametrize("user_s", [0.01, 0.2, 0.5])
def test_engines_stay_busy_and_dialogues_do_not_queue_for_them(user_s: float):
    def run(*, adapts: bool, most: int) -> tuple[float, float]:
        with asyncio.Runner(loop_factory=HurriedLoop) as runner:
            return runner.run(play(places=16, user_s=user_s, most=most, adapts=adapts))

    wanted = HEADROOM * 16 * (0.1 + user_s) / 0.1
    crowded_share, crowded_s = run(adapts=False, most=int(3 * wanted))
    share, duration_s = run(adapts=True, most=int(3 * wanted))
    assert share > 0.98 * crowded_share > 0.95
    assert duration_s < 0.6 * crowded_s
