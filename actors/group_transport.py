"""Transport of finished groups to a work source: groups that finish during one call travel together in the
next, as one block of bytes. Knows no Ray: the caller passes the function that delivers them.

A group alone costs a call and an object in the store, some milliseconds of two processes; many together cost
little more. Where groups are few and far between nothing waits: a call is made at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from actors.trajectory import GroupOrder, GroupSummary

MOST_BYTES = 16 * 2**20
"""Of tables in one call; one larger table goes alone. What is put together leaves the store together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A finished group with its scored table."""

    order: GroupOrder
    summary: GroupSummary
    table: pa.Table


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBatch:
    """Finished groups in the form that travels."""

    orders: Sequence[GroupOrder]  # [num_groups]
    summaries: Sequence[GroupSummary]  # [num_groups]
    num_rows: Sequence[int]  # [num_groups]
    """Rows of each group's table."""
    rows: pa.Buffer
    """All their tables, one after the other, as an Arrow IPC stream: `read_group_batch`."""

    @classmethod
    def of(cls, groups: Sequence[ScoredGroup]) -> "GroupBatch":
        """Raises pa.ArrowInvalid where the tables' schemas differ."""
        tables = [group.table for group in groups]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
        return cls(
            orders=[group.order for group in groups],
            summaries=[group.summary for group in groups],
            num_rows=[table.num_rows for table in tables],
            rows=sink.getvalue(),
        )


def read_group_batch(rows: pa.Buffer) -> pa.Table:
    """The tables of a delivery as one, which holds on to `rows` and copies nothing."""
    return pa.ipc.open_stream(rows).read_all()


class GroupSender:
    """Where finished groups of one feed wait for the call before."""

    def __init__(self, put: Callable[[GroupBatch], Awaitable[object]]):
        self._put = put
        self._waiting: deque[ScoredGroup] = deque()
        self._calling = asyncio.Lock()

    async def send(self, group: ScoredGroup) -> None:
        """Returns when the group has arrived. Raises what `put` raises, to one of those that it took along:
        the others' groups are as lost."""
        self._waiting.append(group)
        async with self._calling:
            # An earlier holder of the lock may have sent this group along.
            if any(one is group for one in self._waiting):
                await self._put(GroupBatch.of(self._next()))

    def _next(self) -> list[ScoredGroup]:
        """The oldest that wait, up to `MOST_BYTES`."""
        groups = [self._waiting.popleft()]
        num_bytes = _size(groups[0].table)
        while self._waiting and (num_bytes := num_bytes + _size(self._waiting[0].table)) <= MOST_BYTES:
            groups.append(self._waiting.popleft())
        return groups


def _size(table: pa.Table) -> int:
    """Bytes of its buffers: `nbytes`, in a thirtieth of its time."""
    return table.get_total_buffer_size()
