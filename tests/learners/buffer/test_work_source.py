"""Laws of the feed's long polls, without Ray: who is woken, and that nobody is forgotten."""

import asyncio
from collections.abc import Sequence

from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.group_store import GroupRows
from learners.buffer.work_source import WorkSource
from tests.fakes import make_key


class Counter(WorkSource):
    """Hands out as many orders as it was told, and counts how often it was asked for one."""

    def __init__(self) -> None:
        super().__init__(group_timeout_s=3600.0)
        self.num_free = 0
        self.num_asked = 0
        self.num_issued = 0
        self.has_ended = False

    async def free(self, num: int) -> None:
        self.num_free += num
        await self._notify()

    async def end(self) -> None:
        self.has_ended = True
        await self._notify()

    def _issue(self) -> GroupOrder | None:
        self.num_asked += 1
        if not self.num_free:
            return None
        self.num_free -= 1
        self.num_issued += 1
        return GroupOrder(group_id=self.num_issued, task_key=make_key(), group_size=2, seed=0)

    def _accept(self, order: GroupOrder, summary: GroupSummary, rows: GroupRows) -> bool:
        return True

    def _requeue(self, group_ids: Sequence[int]) -> None:
        self.num_free += len(group_ids)

    def _has_ended(self) -> bool:
        return self.has_ended


async def waiting(feed: Counter, num: int) -> list[asyncio.Task[list[GroupOrder] | None]]:
    """So many askers that wait for an order."""
    askers = [asyncio.create_task(feed.next_orders(f"asker-{index}", 1)) for index in range(num)]
    while feed.num_asked < num:
        await asyncio.sleep(0)
    return askers


async def test_an_order_wakes_one_of_a_thousand_askers():
    feed = Counter()
    askers = await waiting(feed, 1000)
    await feed.free(1)
    done, _ = await asyncio.wait(askers, return_when=asyncio.FIRST_COMPLETED)
    assert [len(asker.result() or []) for asker in done] == [1]
    assert feed.num_asked <= 1000 + 3, "the one that got it, and one more that looked for another"
    await feed.end()
    await asyncio.gather(*askers)


async def test_orders_that_come_together_reach_as_many_askers():
    feed = Counter()
    askers = await waiting(feed, 20)
    await feed.free(7)
    while sum(asker.done() for asker in askers) < 7:
        await asyncio.sleep(0)
    assert sorted(orders[0].group_id for asker in askers if asker.done() and (orders := asker.result())) == [
        *range(1, 8)
    ]
    await feed.end()
    assert [await asker for asker in askers].count(None) == 13


async def test_the_end_wakes_everybody():
    feed = Counter()
    askers = await waiting(feed, 50)
    await feed.end()
    assert await asyncio.wait_for(asyncio.gather(*askers), timeout=5.0) == [None] * 50


async def test_a_dead_asker_passes_an_order_on_to_the_next():
    feed = Counter()
    dead, alive = await waiting(feed, 2)
    await feed.reassign_groups_of("asker-0")
    await feed.free(1)
    assert await dead == []
    assert [order.group_id for order in await alive or []] == [1]


async def test_a_holder_that_is_dismissed_gets_no_more_orders_and_keeps_what_it_has():
    feed = Counter()
    feed.num_free = 1
    assert len(await feed.next_orders("leaving", 1) or []) == 1
    asked = asyncio.create_task(feed.next_orders("leaving", 1))
    while feed.num_asked < 2:
        await asyncio.sleep(0)
    await feed.drain("leaving")
    assert await asked is None, "in the middle of its long poll"
    await feed.free(1)
    assert await feed.next_orders("leaving", 1) is None
    assert len(await feed.next_orders("staying", 1) or []) == 1
    assert await feed.reassign_groups_of("leaving") == [1], "what it has is its own until then"
