"""Batches while they are being stored: each group counts once, whether it was reassigned, sent twice or
dropped."""

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
from tests.learners.local_buffer import LocalBuffer, batch_of, make_local_buffer

LIMIT_S = 30.0
SIZES = BufferSizes(group_size=2, groups_per_step=1, max_off_policy_steps=2, seed=0)


class FullStore(LocalBuffer):
    """Its object store is full until `has_room`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.has_room = threading.Event()
        self.is_storing = threading.Event()

    def _store(self, rows: pa.Buffer) -> Any:
        self.is_storing.set()
        assert self.has_room.wait(LIMIT_S)
        return super()._store(rows)


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[FullStore]:
    buffer = make_local_buffer(tmp_path, SIZES, group_timeout_s=LIMIT_S, kind=FullStore)
    assert isinstance(buffer, FullStore)
    yield buffer
    buffer.has_room.set()


async def orders_of(buffer: FullStore, worker: str, num: int) -> list[GroupOrder]:
    orders = await asyncio.wait_for(buffer.next_orders(worker, num), LIMIT_S)
    assert orders is not None
    return orders


async def begin(buffer: FullStore, *orders: GroupOrder) -> list[asyncio.Task[list[bool]]]:
    """One batch each; the first is being stored."""
    puts = [asyncio.create_task(buffer.put(batch_of(order, [0.0, 1.0]))) for order in orders]
    await asyncio.to_thread(buffer.is_storing.wait, LIMIT_S)
    return puts


async def answers(buffer: FullStore, puts: list[asyncio.Task[list[bool]]]) -> list[bool]:
    buffer.has_room.set()
    return [accepted for put in puts for accepted in await asyncio.wait_for(put, LIMIT_S)]


async def test_a_full_object_store_blocks_no_other_call(buffer: FullStore):
    (first,) = await orders_of(buffer, "a", 1)
    puts = await begin(buffer, first)
    assert len(await orders_of(buffer, "b", 1)) == 1
    assert (await buffer.metrics())["buffer/groups_ready"] == 0
    assert await answers(buffer, puts) == [True]
    assert (await buffer.metrics())["buffer/groups_ready"] == 1
    assert list(buffer._assignments) == [1]


async def test_batches_are_accepted_in_the_order_of_their_arrival(buffer: FullStore):
    orders = await orders_of(buffer, "a", 3)
    puts = await begin(buffer, orders[2], orders[0], orders[1])
    assert await answers(buffer, puts) == [True] * 3
    assert list(buffer._event_log._positions) == [2, 0, 1]


async def test_of_two_copies_of_a_group_the_first_is_accepted(buffer: FullStore):
    (order,) = await orders_of(buffer, "a", 1)
    puts = await begin(buffer, order, order)
    assert await answers(buffer, puts) == [True, False]
    ledger = await buffer.ledger()
    assert (ledger.issued, ledger.in_flight) == (2, 2)
    assert (await buffer.metrics())["buffer/puts_ignored"] == 1


@pytest.mark.parametrize("is_given_again", [False, True])
async def test_a_group_that_is_reassigned_while_it_is_stored_is_used_once(
    buffer: FullStore, is_given_again: bool
):
    (order,) = await orders_of(buffer, "a", 1)
    puts = await begin(buffer, order)
    assert await buffer.reassign_groups_of("a") == [0]
    if is_given_again:
        assert await orders_of(buffer, "b", 1) == [order]
    assert await answers(buffer, puts) == [True]
    assert 0 not in buffer._assignments and 0 not in buffer._buffer.ids("waiting")
    assert [new.group_id for new in await orders_of(buffer, "b", 9)] == [1, 2]
    assert await buffer.put(batch_of(order, [1.0, 0.0])) == [False]
    ledger = await buffer.ledger()
    assert ledger.closes() and ledger.in_flight == 6


async def test_a_batch_that_is_stored_after_the_end_is_not_accepted(buffer: FullStore, tmp_path: Path):
    first, second = await orders_of(buffer, "a", 2)
    buffer.has_room.set()
    assert await buffer.put(batch_of(first, [0.5, 0.5])) == [True]  # flat: dropped
    buffer.has_room.clear()
    buffer.is_storing.clear()
    puts = await begin(buffer, second)
    await buffer.close()
    assert await answers(buffer, puts) == [False]
    ledger = await buffer.ledger()
    assert (ledger.dropped["flat"], ledger.in_flight) == (2, 2)
    (path,) = (tmp_path / "trajectories").iterdir()
    assert pq.read_table(path)["group_id"].to_pylist() == [0, 0], "rows and ledger agree"
