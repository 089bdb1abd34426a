"""Event log of the buffer: appends every state change to the write-ahead log; after a restart returns the
events since a checkpoint. Replaying them is `replay.py`."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.group_transport import GroupBatch
from actors.trajectory import GroupOrder, GroupSummary, StopReason
from learners.buffer.log.segments import LogEntry
from learners.buffer.log.write_ahead_log import WriteAheadLog
from simulators.task import TaskKey
from simulators.users.quality_metrics import GaugeCounts


class EventKind(StrEnum):
    """The events of a buffer."""

    ISSUED = "issued"
    """A task was drawn."""
    TURNS = "turns"
    """Turns of unfinished dialogues were published."""
    FINISHED = "finished"
    """Groups arrived."""
    AGED = "aged"
    """Groups were dropped as stale."""
    TAKEN = "taken"
    """A step took its groups."""
    TRAINED = "trained"
    """The step ended."""
    REWOUND = "rewound"
    """The run was reset to a checkpoint: later events are void."""


LogPosition = tuple[int, int]
"""Position of a finished group in the log: number of its entry, index among the entry's groups."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedEvents:
    """The logged events around a checkpoint."""

    before: Mapping[int, LogEntry]
    """Those before it, by number, as far as the log still has them."""
    after: Sequence[LogEntry]
    """Those after it, up to the last."""


NO_EVENTS = LoggedEvents(before={}, after=[])
EMPTY_LOG_STATE: Mapping[str, Any] = {"position": 0, "ready": [], "settled": []}
"""The `BufferEventLog.state` of a run without a checkpoint."""


def events_around(entries: Sequence[LogEntry], *, position: int) -> LoggedEvents | None:
    """The valid events before and after entry `position`; those that a rewind made void are left out. None if
    the log does not reach that position, or if the run was rewound to before it."""
    if not entries:
        return None if position else NO_EVENTS
    if not entries[0].number <= position <= entries[-1].number + 1:
        return None
    before: list[LogEntry] = []
    after: list[LogEntry] = []
    is_void = False
    for entry in entries:
        to = entry.facts["to"] if entry.kind == EventKind.REWOUND else None
        if entry.number < position:
            before = _appended(before, entry)
        elif to == position:
            before, after, is_void = [], [], False  # a rewind restores the checkpoint only
        elif to is not None and to < position:
            is_void = True
        elif not is_void:
            after = _appended(after, entry)
    return None if is_void else LoggedEvents(before={entry.number: entry for entry in before}, after=after)


def _appended(entries: list[LogEntry], entry: LogEntry) -> list[LogEntry]:
    if entry.kind == EventKind.REWOUND:
        entries = [one for one in entries if one.number < entry.facts["to"]]
    entries.append(entry)
    return entries


def read_order(saved: Mapping[str, Any]) -> GroupOrder:
    """The order of its JSON form."""
    return GroupOrder(**{**saved, "task_key": TaskKey(**saved["task_key"])})


def read_summary(saved: Mapping[str, Any]) -> GroupSummary:
    """The summary of its JSON form."""
    fields = {
        "task_key": TaskKey(**saved["task_key"]),
        "stop_reasons": [StopReason(reason) for reason in saved["stop_reasons"]],
        "gauges": GaugeCounts(**saved["gauges"]),
    }
    return GroupSummary(**{**saved, **fields})


class BufferEventLog:
    """Writes a buffer's events. An awaitable that it returns is done when all events so far are on disk."""

    def __init__(self, folder: Path, *, log: WriteAheadLog | None = None):
        """Reads the existing log. Raises OSError, and LogError for a log of a later version."""
        self.log = log or WriteAheadLog(folder)
        self._found = self.log.recover()
        """Entries of earlier processes, until they are read or made void."""
        self._last: Future[None] | None = None
        self._positions: dict[int, LogPosition] = {}
        """By group, of the groups that a checkpoint may have to name."""

    def read(self, position: int) -> LoggedEvents | None:
        """The events of earlier processes around entry `position`, see `events_around`."""
        events, self._found = events_around(self._found, position=position), []
        return events

    def rewind(self, position: int) -> None:
        """The run resumes from a checkpoint at `position` without its events: later ones are void, and groups
        that were finished then are played again. Raises OSError."""
        self.log.skip_to(position)
        if self.log.next_number:
            self._append(EventKind.REWOUND, {"to": position})
        self._found = []

    def start(self) -> None:
        """The run starts: from the beginning, unless the events of earlier processes were read."""
        if self._found:
            self.rewind(0)

    def issued(self, group_id: int) -> None:
        self._append(EventKind.ISSUED, {"group_id": group_id})

    def finished(self, batch: GroupBatch) -> "asyncio.Future[None]":
        """Groups arrived. Their tables are written as they came, unread."""
        number = self.log.next_number
        facts = {
            "orders": [replace(order, num_completed_turns=0) for order in batch.orders],
            "summaries": batch.summaries,
            "num_rows": batch.num_rows,
        }
        for index, order in enumerate(batch.orders):
            # The first arrival of a group counts.
            self._positions.setdefault(order.group_id, (number, index))
        return asyncio.wrap_future(self._append(EventKind.FINISHED, facts, body=batch.rows))

    def replayed(self, group_id: int, position: LogPosition) -> None:
        """A finished group of an earlier process is in the buffer again."""
        self._positions.setdefault(group_id, position)

    def turns(self, group_ids: Sequence[int], rows: pa.Buffer) -> int:
        """Turns of these groups' dialogues were published. Returns the number of the entry."""
        number = self.log.next_number
        self._append(EventKind.TURNS, {"group_ids": list(group_ids)}, body=rows)
        return number

    def aged(self, policy_version: int) -> None:
        self._append(EventKind.AGED, {"policy_version": policy_version})

    def taken(self, group_ids: Sequence[int], *, policy_version: int) -> "asyncio.Future[None]":
        facts = {"policy_version": policy_version, "group_ids": list(group_ids)}
        return asyncio.wrap_future(self._append(EventKind.TAKEN, facts))

    def trained(self, group_ids: Sequence[int], *, step: int) -> None:
        self._append(EventKind.TRAINED, {"step": step, "group_ids": list(group_ids)})

    async def written(self) -> None:
        """Returns when all events so far are on disk."""
        if self._last is not None:
            await asyncio.wrap_future(self._last)

    def state(
        self,
        *,
        position: int | None,
        ready: Sequence[int],
        unreported: Mapping[int, Sequence[str]],
        first_turns: int | None,
    ) -> dict[str, Any]:
        """A checkpoint's part about the log, as JSON: the number of the next event (`position`; None means
        the log's end), the first entry that the checkpoint needs, and the positions of the ready groups and
        of resolved groups that no step has reported (`unreported`: their outcomes by id). `first_turns` is
        the oldest needed entry of turns. The positions of other groups are forgotten."""
        position = self.log.next_number if position is None else position
        self.keep_positions((*ready, *unreported))
        needed = [number for number, _ in self._positions.values()]
        return {
            "position": position,
            "first": min([position, *needed, *([] if first_turns is None else [first_turns])]),
            "ready": [list(self._positions[one]) for one in ready],
            "settled": [[*self._positions[one], list(outcomes)] for one, outcomes in unreported.items()],
        }

    def keep_positions(self, group_ids: Sequence[int]) -> None:
        """Forgets the positions of all other groups, which no later checkpoint names."""
        self._positions = {one: self._positions[one] for one in group_ids if one in self._positions}

    def _append(self, kind: str, facts: Mapping[str, Any], **body: pa.Buffer) -> "Future[None]":
        self._last = self.log.append(kind, facts=facts, **body)
        return self._last
