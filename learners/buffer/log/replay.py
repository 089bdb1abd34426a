"""Replay of logged events after a crash: restores the finished groups into the buffer and repeats the steps
since the checkpoint one at a time, as the driver repeats its calls."""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from ray import ObjectRef

from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.buffer import Buffer
from learners.buffer.buffered_group import BufferedGroup, SettledGroup
from learners.buffer.group_store import GroupRows, rows_of
from learners.buffer.log.event_json import order_of, summary_of
from learners.buffer.log.events import BufferEventLog, EventKind, LoggedEvents, LogPosition
from learners.buffer.log.segments import LogEntry
from learners.buffer.partial_rollouts import PartialRollouts

Store = Callable[[pa.Buffer], Awaitable["ObjectRef[pa.Table]"]]
"""Puts a delivery's rows into the object store."""
Accept = Callable[[GroupOrder, GroupSummary, GroupRows], object]
"""Takes a finished group in."""


class LogReplay:
    """Plays the events of a `LoggedEvents` on a buffer that is as its checkpoint was."""

    def __init__(
        self,
        memory: LoggedEvents,
        *,
        buffer: Buffer,
        recall: BufferEventLog,
        begun: PartialRollouts,
        store: Store,
        accept: Accept,
    ):
        versions = [one.facts["policy_version"] for one in memory.coming if one.kind == EventKind.TAKEN]
        self.num_steps = len(versions)
        """Steps that had begun since the checkpoint."""
        self.last_version = max(versions) + 1 if versions else None
        """The policy version after the last of them; None where there is none."""
        self._past = memory.past
        self._coming = deque(memory.coming)
        self._buffer = buffer
        self._recall = recall
        self._begun = begun
        self._store = store
        self._accept = accept

    @property
    def has_steps(self) -> bool:
        """Whether a step is still to be taken, or to be booked, as it was then."""
        return any(one.kind in (EventKind.TAKEN, EventKind.TRAINED) for one in self._coming)

    @property
    def position(self) -> int | None:
        """The number of the next event; None where all are through."""
        return self._coming[0].number if self._coming else None

    async def remember(self, journal: Mapping[str, Any]) -> None:
        """Puts what was finished when the checkpoint was made where it was, and begun dialogues with their
        groups. `journal` is the checkpoint's own account."""
        for number, index in journal["ready"]:
            if (entry := self._past.get(number)) is not None:
                await self._put(entry, [index])
        for number, index, outcomes in journal["settled"]:
            if (entry := self._past.get(number)) is not None:
                (group,) = await self._groups(entry, [index])
                self._recall.found(group.order.group_id, LogPosition(number=number, index=index))
                self._buffer.settle_again([SettledGroup(group=group, outcomes=outcomes)])
        for entry in self._past.values():
            if entry.kind == EventKind.TURNS:
                self._begun.add(entry.facts["group_ids"], entry.body, number=entry.number)
        self._begun.keep(self._buffer.unfinished)

    async def take(self, *, policy_version: int) -> list[BufferedGroup] | None:
        """The groups of the next step, and all that came before it took them; None where no step is left."""
        entry = self._next(EventKind.TAKEN)
        if entry is None:
            return None
        assert entry.facts["policy_version"] == policy_version, "steps are taken in their order"
        await self._up_to(entry)
        return [self._buffer.taken(group_id) for group_id in entry.facts["group_ids"]]

    async def book(self) -> bool:
        """Books the step that was taken last, and whatever came before that; False where it never was, and
        all there was is through."""
        entry = self._next(EventKind.TRAINED)
        await self._up_to(entry)
        return entry is not None

    async def finish(self) -> None:
        """All that came after the last step."""
        await self._up_to(None)
        self._begun.keep(self._buffer.unfinished)

    def _next(self, kind: EventKind) -> LogEntry | None:
        return next((entry for entry in self._coming if entry.kind == kind), None)

    async def _up_to(self, wanted: LogEntry | None) -> None:
        """All events up to this one; up to the last without one."""
        while self._coming:
            entry = self._coming[0]
            await self._apply(entry)
            self._coming.popleft()
            if entry is wanted:
                return

    async def _apply(self, entry: LogEntry) -> None:
        facts, buffer = entry.facts, self._buffer
        match entry.kind:
            case EventKind.ISSUED:
                buffer.draw_to(facts["group_id"])
            case EventKind.FINISHED:
                await self._put(entry, range(len(facts["orders"])))
            case EventKind.TURNS:
                self._begun.add(facts["group_ids"], entry.body, number=entry.number)
            case EventKind.AGED:
                buffer.drop_stale(policy_version=facts["policy_version"])
            case EventKind.TAKEN:
                groups = buffer.take(len(facts["group_ids"]), policy_version=facts["policy_version"])
                ids = [group.order.group_id for group in groups or ()]
                assert ids == facts["group_ids"], f"entry {entry.number}: the step would take {ids}"
            case EventKind.TRAINED:
                buffer.book(facts["group_ids"])
            case EventKind.REWOUND:  # who went back played again what had been finished
                buffer.unready()
                self._begun.keep(())

    async def _put(self, entry: LogEntry, indices: Sequence[int]) -> None:
        for index, group in zip(indices, await self._groups(entry, indices), strict=True):
            self._recall.found(group.order.group_id, LogPosition(number=entry.number, index=index))
            self._accept(group.order, group.summary, group.payload)
            self._begun.forget(group.order.group_id)

    async def _groups(self, entry: LogEntry, indices: Sequence[int]) -> list[BufferedGroup]:
        """Some groups of a delivery, their tables in the object store again."""
        rows = rows_of(await self._store(entry.body), num_rows=entry.facts["num_rows"])
        orders, summaries = entry.facts["orders"], entry.facts["summaries"]
        return [
            BufferedGroup(order=order_of(orders[i]), summary=summary_of(summaries[i]), payload=rows[i])
            for i in indices
        ]
