"""Replay of logged events after a crash: restores the finished groups into the buffer and repeats the steps
since the checkpoint one at a time, as the driver repeats its calls."""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from ray import ObjectRef

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.buffer import Buffer
from learners.buffer.group_store import GroupRows, rows_of
from learners.buffer.log.events import (
    BufferEventLog,
    EventKind,
    LoggedEvents,
    read_order,
    read_summary,
)
from learners.buffer.log.segments import LogEntry
from learners.buffer.partial_rollouts import PartialRollouts

Store = Callable[[pa.Buffer], Awaitable["ObjectRef[pa.Table]"]]
"""Puts a batch's rows into the object store."""
Accept = Callable[[GroupOrder, GroupSummary, GroupRows], object]
"""Accepts a finished group."""


class LogReplay:
    """Applies logged events to a buffer that is as its checkpoint was. Inactive without events after it."""

    def __init__(
        self,
        events: LoggedEvents,
        *,
        buffer: Buffer,
        event_log: BufferEventLog,
        partial_rollouts: PartialRollouts,
        store: Store,
        accept: Accept,
    ):
        versions = [one.facts["policy_version"] for one in events.after if one.kind == EventKind.TAKEN]
        self.num_steps = len(versions)
        """Steps that had begun since the checkpoint."""
        self.last_version = max(versions) + 1 if versions else None
        """The policy version after the last of them; None without any."""
        self.is_active = False
        """Whether events are left to replay: between `restore` and the last step's end."""
        self._before = events.before
        self._events = deque(events.after)
        self._buffer = buffer
        self._event_log = event_log
        self._partial_rollouts = partial_rollouts
        self._store = store
        self._accept = accept

    @property
    def position(self) -> int | None:
        """The number of the next event; None if none is left."""
        return self._events[0].number if self._events else None

    async def restore(self, log_state: Mapping[str, Any]) -> None:
        """Restores the groups that were finished at the checkpoint, and the turns of unfinished dialogues.
        `log_state` is the checkpoint's `BufferEventLog.state`."""
        self.is_active = True
        for number, index in log_state["ready"]:
            if (entry := self._before.get(number)) is not None:
                await self._put(entry, [index])
        for number, index, outcomes in log_state["settled"]:
            if (entry := self._before.get(number)) is not None:
                (group,) = await self._groups(entry, [index], outcomes=outcomes)
                self._event_log.replayed(group.order.group_id, (number, index))
                self._buffer.resolved.append(group)
        for entry in self._before.values():
            if entry.kind == EventKind.TURNS:
                self._partial_rollouts.add(entry.facts["group_ids"], entry.body, number=entry.number)
        self._keep_unfinished()

    async def take(self, *, policy_version: int) -> list[FinishedGroup] | None:
        """The groups of the next logged step, after all events before it; None if no step is left."""
        entry = self._next(EventKind.TAKEN)
        if entry is None:
            return None
        assert entry.facts["policy_version"] == policy_version, "steps are repeated in their order"
        await self._apply_to(entry)
        return [self._buffer.taken(group_id) for group_id in entry.facts["group_ids"]]

    async def mark_trained(self) -> bool:
        """Applies the events up to the end of the step that was taken last; False if the log ends before
        it."""
        entry = self._next(EventKind.TRAINED)
        await self._apply_to(entry)
        return entry is not None

    async def finish(self) -> None:
        """Ends the replay if no step is left: applies the events after the last step."""
        if self.is_active and not (self._next(EventKind.TAKEN) or self._next(EventKind.TRAINED)):
            await self._apply_to(None)
            self._keep_unfinished()
            self.is_active = False

    def _keep_unfinished(self) -> None:
        self._partial_rollouts.keep(self._buffer.ids("waiting", "held"))

    def _next(self, kind: EventKind) -> LogEntry | None:
        return next((entry for entry in self._events if entry.kind == kind), None)

    async def _apply_to(self, last: LogEntry | None) -> None:
        """Applies all events up to this one; None means to the end."""
        while self._events:
            entry = self._events[0]
            await self._apply(entry)
            self._events.popleft()
            if entry is last:
                return

    async def _apply(self, entry: LogEntry) -> None:
        facts, buffer = entry.facts, self._buffer
        match entry.kind:
            case EventKind.ISSUED:
                buffer.draw_to(facts["group_id"])
            case EventKind.FINISHED:
                await self._put(entry, range(len(facts["orders"])))
            case EventKind.TURNS:
                self._partial_rollouts.add(facts["group_ids"], entry.body, number=entry.number)
            case EventKind.AGED:
                buffer.drop_stale(policy_version=facts["policy_version"])
            case EventKind.TAKEN:
                groups = buffer.take(len(facts["group_ids"]), policy_version=facts["policy_version"])
                ids = [group.order.group_id for group in groups or ()]
                assert ids == facts["group_ids"], f"entry {entry.number}: the step would take {ids}"
            case EventKind.TRAINED:
                buffer.mark_trained(facts["group_ids"])
            case EventKind.REWOUND:  # finished groups were played again after it
                buffer.requeue_ready()
                self._partial_rollouts.keep(())

    async def _put(self, entry: LogEntry, indices: Sequence[int]) -> None:
        for index, group in zip(indices, await self._groups(entry, indices), strict=True):
            self._event_log.replayed(group.order.group_id, (entry.number, index))
            self._accept(group.order, group.summary, group.payload)
            self._partial_rollouts.forget(group.order.group_id)

    async def _groups(
        self, entry: LogEntry, indices: Sequence[int], *, outcomes: Sequence[str] = ()
    ) -> list[FinishedGroup]:
        """Groups of a batch, with their tables in the object store again."""
        rows = rows_of(await self._store(entry.body), num_rows=entry.facts["num_rows"])
        orders, summaries = entry.facts["orders"], entry.facts["summaries"]
        return [
            FinishedGroup(
                order=read_order(orders[i]),
                summary=read_summary(summaries[i]),
                payload=rows[i],
                outcomes=outcomes,
            )
            for i in indices
        ]
