"""The buffer of training without Ray: tables are kept in this process instead of Ray's object store."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.group_transport import FinishedGroup, GroupBatch, read_group_batch
from actors.trajectory import GroupOrder, StopReason
from learners.buffer.buffer import BufferSizes
from learners.buffer.buffer_actor import BufferActor
from learners.buffer.log.events import BufferEventLog
from simulators.task import TaskSource
from tests.fakes import make_summary


class Stored:
    """Awaitable of a table, like a reference; works in any event loop and any number of times."""

    def __init__(self, table: pa.Table):
        self._table = table

    def __await__(self) -> Generator[Any, None, pa.Table]:
        yield from ()
        return self._table


class LocalBuffer(BufferActor):
    def _store(self, rows: pa.Buffer) -> Any:
        return Stored(read_group_batch(rows))


def make_local_buffer(
    folder: Path,
    sizes: BufferSizes,
    *,
    group_timeout_s: float,
    kind: type[LocalBuffer] = LocalBuffer,
    event_log: BufferEventLog | None = None,
) -> LocalBuffer:
    return kind(
        sizes,
        source=TaskSource({"function": 1.0}, split="train", seed=0, difficulty=0),
        run_folder=folder,
        group_timeout_s=group_timeout_s,
        event_log=event_log,
    )


def batch_of(
    order: GroupOrder,
    rewards: Sequence[float],
    *,
    stop_reasons: Sequence[StopReason] | None = None,
    versions: tuple[int, int] = (0, 0),
    is_empty: bool = False,
) -> GroupBatch:
    """The group with these rewards, one row per trajectory; `is_empty`: without policy tokens."""
    summary = make_summary(rewards, stop_reasons=stop_reasons, versions=versions, is_empty=is_empty)
    summary = replace(summary, group_id=order.group_id, task_key=order.task_key)
    size = len(rewards)
    table = pa.table(
        {
            "group_id": pa.array([order.group_id] * size, pa.int64()),
            "trajectory": pa.array(range(size), pa.int32()),
            "policy_versions": pa.array([list(versions)] * size, pa.list_(pa.int32())),
        }
    )
    return GroupBatch.of([FinishedGroup(order=order, summary=summary, payload=table)])
