"""Groups that finish during one call travel together in the next; none is lost or sent twice."""

import asyncio

import pyarrow as pa
import pytest

from actors import group_transport
from actors.group_transport import FinishedGroup, GroupBatch, GroupSender, read_group_batch
from actors.trajectory import GroupOrder
from tests.fakes import make_key, make_summary


def finished(group_id: int, *, num_rows: int = 2) -> FinishedGroup:
    return FinishedGroup(
        order=GroupOrder(group_id=group_id, task_key=make_key("travel"), group_size=2, seed=0),
        summary=make_summary([0.0, 1.0]),
        payload=pa.table(
            {"group_id": [group_id] * num_rows, "ids": [[group_id, row] for row in range(num_rows)]}
        ),
    )


def ids_of(sent: GroupBatch) -> list[int]:
    return [order.group_id for order in sent.orders]


class SlowSource:
    """Each call returns only when the test says so."""

    def __init__(self) -> None:
        self.calls: list[GroupBatch] = []
        self.open = asyncio.Event()

    async def put(self, sent: GroupBatch) -> None:
        self.calls.append(sent)
        await self.open.wait()


def test_a_batch_holds_every_row_of_every_group_in_order():
    groups = [finished(3), finished(1, num_rows=3), finished(2, num_rows=1)]
    sent = GroupBatch.of(groups)
    assert (ids_of(sent), list(sent.num_rows)) == ([3, 1, 2], [2, 3, 1])
    assert read_group_batch(sent.rows).equals(pa.concat_tables([group.payload for group in groups]))


def test_reading_a_batch_copies_nothing():
    sent = GroupBatch.of([finished(3, num_rows=1000)])
    begin, end = sent.rows.address, sent.rows.address + sent.rows.size
    values = read_group_batch(sent.rows)["ids"].chunk(0).values.buffers()[1]
    assert values is not None and begin <= values.address < end


async def test_groups_that_finish_during_a_call_go_together_in_the_next():
    source = SlowSource()
    sender = GroupSender(source.put)
    sending = [asyncio.create_task(sender.send(finished(group_id))) for group_id in range(5)]
    await asyncio.sleep(0)
    assert [ids_of(sent) for sent in source.calls] == [[0]]
    source.open.set()
    await asyncio.gather(*sending)
    assert [ids_of(sent) for sent in source.calls] == [[0], [1, 2, 3, 4]]


async def test_a_group_that_finishes_alone_is_sent_at_once():
    source = SlowSource()
    source.open.set()
    sender = GroupSender(source.put)
    for group_id in range(3):
        await sender.send(finished(group_id))
        assert [ids_of(sent) for sent in source.calls] == [[known] for known in range(group_id + 1)]


async def test_no_call_is_larger_than_the_limit_but_for_one_large_group(monkeypatch: pytest.MonkeyPatch):
    size = finished(0).payload.get_total_buffer_size()
    monkeypatch.setattr(group_transport, "MAX_BYTES", 2 * size)
    source = SlowSource()
    sender = GroupSender(source.put)
    groups = [finished(0), finished(1), finished(2), finished(3), finished(4, num_rows=50)]
    sending = [asyncio.create_task(sender.send(group)) for group in groups]
    await asyncio.sleep(0)
    source.open.set()
    await asyncio.gather(*sending)
    assert [ids_of(sent) for sent in source.calls] == [[0], [1, 2], [3], [4]]


async def test_a_call_that_fails_is_raised():
    async def put(sent: GroupBatch) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await GroupSender(put).send(finished(0))
