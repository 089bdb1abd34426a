"""Transport of finished groups to a work source: the groups that finish during one call travel together in
the next, as one block of bytes. Knows no Ray: the caller passes `put`.

A call and its object in the store cost milliseconds in two processes; many groups together cost little more.
A group that finishes while no call is in flight is sent at once."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actors.trajectory import GroupOrder, GroupSummary

MAX_BYTES = 16 * 2**20
"""Bytes of tables in one call; a larger table travels alone. Tables of one call leave the object store
together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedGroup:
    """A played and scored group: its order, its numbers, and its table or a reference to it.

    Example: of a trained group of three, `outcomes` is `("trained", "failed", "trained")`."""

    order: GroupOrder
    summary: GroupSummary
    payload: Any
    """The group's table in the rollout actor; the reference `GroupRows` in a work source; any object in tests
    of the buffer, which does not use it."""
    outcomes: Sequence[str] = ()  # [num_dialogues]
    """"trained" or a drop reason of each trajectory, once the group is resolved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBatch:
    """Finished groups in the form that travels."""

    orders: Sequence[GroupOrder]  # [num_groups]
    summaries: Sequence[GroupSummary]  # [num_groups]
    num_rows: Sequence[int]  # [num_groups]
    """Rows of each group's table."""
    rows: pa.Buffer
    """All their tables in order, as one Arrow IPC stream: `read_group_batch`."""

    @classmethod
    def of(cls, groups: Sequence[FinishedGroup]) -> "GroupBatch":
        """From groups with their tables. Raises pa.ArrowInvalid if the tables' schemas differ."""
        tables: list[pa.Table] = [group.payload for group in groups]
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
    """The tables of a batch as one, which references `rows` without copying."""
    return pa.ipc.open_stream(rows).read_all()


class GroupSender:
    """Queue of finished groups for one work source, with one call in flight."""

    def __init__(self, put: Callable[[GroupBatch], Awaitable[object]]):
        self._put = put
        self._queue: deque[FinishedGroup] = deque()
        self._calling = asyncio.Lock()

    async def send(self, group: FinishedGroup) -> None:
        """Returns when the group has arrived. An exception of `put` is raised to one sender of the batch; the
        others' groups are lost as well."""
        self._queue.append(group)
        async with self._calling:
            # An earlier holder of the lock may have sent this group.
            if any(one is group for one in self._queue):
                await self._put(GroupBatch.of(self._next()))

    def _next(self) -> list[FinishedGroup]:
        """The oldest of the queue, up to `MAX_BYTES`."""
        groups = [self._queue.popleft()]
        num_bytes = _size(groups[0])
        while self._queue and (num_bytes := num_bytes + _size(self._queue[0])) <= MAX_BYTES:
            groups.append(self._queue.popleft())
        return groups


def _size(group: FinishedGroup) -> int:
    """Bytes of its table's buffers: `nbytes`, in a thirtieth of its time."""
    return group.payload.get_total_buffer_size()
