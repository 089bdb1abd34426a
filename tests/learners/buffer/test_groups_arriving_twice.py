"""Deliveries while they are being stored: whatever happens to their groups meanwhile, each counts once."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.trajectory import GroupOrder
from learners.buffer.buffer import BufferSizes
from tests.learners.local_buffer import LocalBuffer, delivery_of, make_local_buffer

LIMIT_S = 30.0
SIZES = BufferSizes(group_size=2, groups_per_step=1, max_off_policy_steps=2, seed=0)


class FullStore(LocalBuffer):
    """Stores nothing until the store has room."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.has_room = threading.Event()
        self.is_storing = threading.Event()

    def _store(self, rows: pa.Buffer) -> Any:
        self.is_storing.set()
        assert self.has_room.wait(LIMIT_S)
        return super()._store(rows)


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[FullStore]:
    feed = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S, kind=FullStore)
    assert isinstance(feed, FullStore)
    yield feed
    feed.has_room.set()


async def orders_of(feed: FullStore, holder: str, num: int) -> list[GroupOrder]:
    orders = await asyncio.wait_for(feed.next_orders(holder, num), LIMIT_S)
    assert orders is not None
    return orders


async def begin(feed: FullStore, *orders: GroupOrder) -> list[asyncio.Task[list[bool]]]:
    """One delivery each, of which the first is being stored."""
    puts = [asyncio.create_task(feed.put(delivery_of(order, [0.0, 1.0]))) for order in orders]
    await asyncio.to_thread(feed.is_storing.wait, LIMIT_S)
    return puts


async def answers(feed: FullStore, puts: list[asyncio.Task[list[bool]]]) -> list[bool]:
    feed.has_room.set()
    return [accepted for put in puts for accepted in await asyncio.wait_for(put, LIMIT_S)]


async def test_a_store_that_is_full_keeps_nobody_else_waiting(feed: FullStore):
    (first,) = await orders_of(feed, "a", 1)
    puts = await begin(feed, first)
    assert len(await orders_of(feed, "b", 1)) == 1
    assert (await feed.metrics())["buffer/groups_ready"] == 0
    assert await answers(feed, puts) == [True]
    assert (await feed.metrics())["buffer/groups_ready"] == 1
    assert list(feed._assignments) == [1]


async def test_deliveries_are_taken_in_the_order_in_which_they_came(feed: FullStore):
    orders = await orders_of(feed, "a", 3)
    puts = await begin(feed, orders[2], orders[0], orders[1])
    assert await answers(feed, puts) == [True] * 3
    assert list(feed._event_log._positions) == [2, 0, 1]


async def test_of_two_deliveries_of_a_group_the_first_is_taken(feed: FullStore):
    (order,) = await orders_of(feed, "a", 1)
    puts = await begin(feed, order, order)
    assert await answers(feed, puts) == [True, False]
    ledger = await feed.ledger()
    assert (ledger.issued, ledger.in_flight) == (2, 2)
    assert (await feed.metrics())["buffer/puts_ignored"] == 1


@pytest.mark.parametrize("is_given_again", [False, True])
async def test_a_group_that_is_taken_from_its_holder_meanwhile_is_used_once(
    feed: FullStore, is_given_again: bool
):
    (order,) = await orders_of(feed, "a", 1)
    puts = await begin(feed, order)
    assert await feed.reassign_groups_of("a") == [0]
    if is_given_again:
        assert await orders_of(feed, "b", 1) == [order]
    assert await answers(feed, puts) == [True]
    assert 0 not in feed._assignments and 0 not in feed._buffer.ids("waiting")
    assert [new.group_id for new in await orders_of(feed, "b", 9)] == [1, 2]
    assert await feed.put(delivery_of(order, [1.0, 0.0])) == [False]
    ledger = await feed.ledger()
    assert ledger.closes() and ledger.in_flight == 6


async def test_what_is_stored_when_the_feed_has_ended_is_not_taken(feed: FullStore, tmp_path: Path):
    first, second = await orders_of(feed, "a", 2)
    feed.has_room.set()
    assert await feed.put(delivery_of(first, [0.5, 0.5])) == [True]  # flat: dropped
    feed.has_room.clear()
    feed.is_storing.clear()
    puts = await begin(feed, second)
    await feed.close()
    assert await answers(feed, puts) == [False]
    ledger = await feed.ledger()
    assert (ledger.dropped["flat"], ledger.in_flight) == (2, 2)
    (path,) = (tmp_path / "trajectories").iterdir()
    assert pq.read_table(path)["group_id"].to_pylist() == [0, 0], "rows and ledger tell the same"
