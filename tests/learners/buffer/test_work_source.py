"""Long polls of a work source, without Ray: how many calls are woken, and that none is forgotten."""

import asyncio
from collections.abc import Sequence

from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.group_store import GroupRows
from learners.buffer.work_source import WorkSource
from tests.fakes import make_key


class Counter(WorkSource):
    """Issues `num_free` orders, and counts the requests."""

    def __init__(self) -> None:
        super().__init__(group_timeout_s=3600.0)
        self.num_free = 0
        self.num_requests = 0
        self.num_issued = 0
        self.has_ended = False

    async def free(self, num: int) -> None:
        self.num_free += num
        await self._notify()

    async def end(self) -> None:
        self.has_ended = True
        await self._notify()

    def _issue(self) -> GroupOrder | None:
        self.num_requests += 1
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


async def waiting(source: Counter, num: int) -> list[asyncio.Task[list[GroupOrder] | None]]:
    """`num` calls that wait for an order."""
    calls = [asyncio.create_task(source.next_orders(f"call-{index}", 1)) for index in range(num)]
    while source.num_requests < num:
        await asyncio.sleep(0)
    return calls


async def test_an_order_wakes_one_of_a_thousand_waiting_calls():
    source = Counter()
    calls = await waiting(source, 1000)
    await source.free(1)
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert [len(call.result() or []) for call in done] == [1]
    assert source.num_requests <= 1000 + 3, "the one that got it, and one more that checked for another"
    await source.end()
    await asyncio.gather(*calls)


async def test_seven_orders_at_once_reach_seven_calls():
    source = Counter()
    calls = await waiting(source, 20)
    await source.free(7)
    while sum(call.done() for call in calls) < 7:
        await asyncio.sleep(0)
    assert sorted(orders[0].group_id for call in calls if call.done() and (orders := call.result())) == [
        *range(1, 8)
    ]
    await source.end()
    assert [await call for call in calls].count(None) == 13


async def test_the_end_wakes_all_calls():
    source = Counter()
    calls = await waiting(source, 50)
    await source.end()
    assert await asyncio.wait_for(asyncio.gather(*calls), timeout=5.0) == [None] * 50


async def test_the_call_of_a_dead_worker_passes_an_order_on_to_the_next():
    source = Counter()
    dead, alive = await waiting(source, 2)
    await source.reassign_groups_of("call-0")
    await source.free(1)
    assert await dead == []
    assert [order.group_id for order in await alive or []] == [1]


async def test_a_draining_worker_gets_no_more_orders_and_keeps_its_groups():
    source = Counter()
    source.num_free = 1
    assert len(await source.next_orders("leaving", 1) or []) == 1
    asked = asyncio.create_task(source.next_orders("leaving", 1))
    while source.num_requests < 2:
        await asyncio.sleep(0)
    await source.drain("leaving")
    assert await asked is None, "during its long poll"
    await source.free(1)
    assert await source.next_orders("leaving", 1) is None
    assert len(await source.next_orders("staying", 1) or []) == 1
    assert await source.reassign_groups_of("leaving") == [1], "its groups are its own until then"
