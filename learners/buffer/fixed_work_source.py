"""Work source with a fixed list of group orders, as a Ray actor: used by evaluation. Drops nothing, trains
nothing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupOrder, GroupSummary
from actors.trajectory_table import num_tokens
from learners.buffer.archive import write_tables
from learners.buffer.group_store import GroupRows
from learners.buffer.work_source import WorkSource

FETCH_TIMEOUT_S = 60.0
TOKEN_COLUMNS = ("context_ids", "completion_ids", "behavior_logprobs", "policy_versions")


def without_tokens(table: pa.Table) -> pa.Table:
    """A group's table without token columns, and with `is_turn`, which is false in the one row of a
    trajectory that failed before its first turn."""
    is_turn = pa.array(num_tokens(table) > 0)
    return table.drop_columns(list(TOKEN_COLUMNS)).append_column("is_turn", is_turn)


class FixedWorkSource(WorkSource):
    """Issues each order of a list until its group has arrived."""

    def __init__(self, orders: Sequence[GroupOrder], *, group_timeout_s: float):
        super().__init__(group_timeout_s=group_timeout_s)
        self._orders = {order.group_id: order for order in orders}
        assert len(self._orders) == len(orders), "group ids must differ"
        self._waiting = list(self._orders)
        """Ids of the groups to issue, in this order."""
        self._finished: dict[int, FinishedGroup] = {}

    async def finished_since(self, num_known: int) -> list[pa.Table]:
        """The tables `without_tokens` of the groups that finished after the first `num_known` of them, in the
        order in which they finished."""
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            return [
                without_tokens(await group.payload) for group in list(self._finished.values())[num_known:]
            ]

    async def results(self, timeout_s: float) -> list[FinishedGroup]:
        """All groups in the order of the list, with `GroupRows` as payloads, once the last has finished.
        Raises TimeoutError that names the missing ones."""
        try:
            async with self._changed, asyncio.timeout(timeout_s):
                await self._changed.wait_for(self._has_ended)
        except TimeoutError:
            held = [f"group {group_id} with {one.worker}" for group_id, one in self._assignments.items()]
            waiting = [f"group {group_id} unassigned" for group_id in self._waiting]
            raise TimeoutError(f"unfinished after {timeout_s:.0f} s: {'; '.join(held + waiting)}") from None
        return [self._finished[group_id] for group_id in self._orders]

    async def write(self, path: Path) -> None:
        """Writes the tables of all finished groups as one Parquet file. Raises OSError."""
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            tables = [await group.payload for group in self._finished.values()]
        await asyncio.to_thread(write_tables, path, tables)

    def _issue(self) -> GroupOrder | None:
        return self._orders[self._waiting.pop(0)] if self._waiting else None

    def _accept(self, order: GroupOrder, summary: GroupSummary, rows: GroupRows) -> bool:
        if order.group_id in self._finished:
            return False
        if order.group_id in self._waiting:
            self._waiting.remove(order.group_id)
        self._finished[order.group_id] = FinishedGroup(order=order, summary=summary, payload=rows)
        return True

    def _requeue(self, group_ids: Sequence[int]) -> None:
        self._waiting = [*group_ids, *self._waiting]

    def _has_ended(self) -> bool:
        return len(self._finished) == len(self._orders)
