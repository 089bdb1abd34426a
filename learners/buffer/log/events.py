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
from learners.buffer.log.segments import LogEntry
from learners.buffer.log.write_ahead_log import WriteAheadLog


class EventKind(StrEnum):
    """Which events there are."""

    ISSUED = "issued"
    """A task was drawn."""
    TURNS = "turns"
    """Turns of dialogues under way are over."""
    FINISHED = "finished"
    """Groups came home."""
    AGED = "aged"
    """Groups were dropped as stale."""
    TAKEN = "taken"
    """A step took its groups."""
    TRAINED = "trained"
    """The step is over."""
    REWOUND = "rewound"
    """The run went back to a checkpoint, and left what came after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPosition:
    """Where the journal has a finished group."""

    number: int
    """Of its entry."""
    index: int
    """Which of the groups that came together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedEvents:
    """What the journal says around a checkpoint."""

    past: Mapping[int, LogEntry]
    """Before it, by number; not all the way back."""
    coming: Sequence[LogEntry]
    """After it, to the last."""


def memory_of(entries: Sequence[LogEntry], *, position: int) -> LoggedEvents | None:
    """The events before and after entry `position`, in the run's own order: what was gone back from is left
    out. None where the journal does not reach there, or where the run has gone another way since."""
    if not entries:
        return None if position else LoggedEvents(past={}, coming=[])
    if not entries[0].number <= position <= entries[-1].number + 1:
        return None
    past: list[LogEntry] = []
    coming: list[LogEntry] = []
    is_left = False
    for entry in entries:
        to = entry.facts["to"] if entry.kind == EventKind.REWOUND else None
        if entry.number < position:
            past = _after(past, entry)
        elif to == position:
            past, coming, is_left = [], [], False  # who went back took only the checkpoint along
        elif to is not None and to < position:
            is_left = True
        elif not is_left:
            coming = _after(coming, entry)
    return None if is_left else LoggedEvents(past={entry.number: entry for entry in past}, coming=coming)


def _after(entries: list[LogEntry], entry: LogEntry) -> list[LogEntry]:
    if entry.kind == EventKind.REWOUND:
        entries = [one for one in entries if one.number < entry.facts["to"]]
    entries.append(entry)
    return entries


NO_ACCOUNT: Mapping[str, Any] = {"position": 0, "ready": [], "settled": []}
"""Of a run without a checkpoint, and of one from before there was a journal."""


class BufferEventLog:
    """Writes a buffer's events down. What it returns to be awaited is done when all until then is on the
    disk."""

    def __init__(self, folder: Path, *, journal: WriteAheadLog | None = None):
        """Reads what is there. Raises OSError, and JournalError for a journal of a later version."""
        self._journal = journal or WriteAheadLog(folder)
        self._found = self._journal.recover()
        self._last: Future[None] | None = None
        self._places: dict[int, LogPosition] = {}
        """By group, of those that a checkpoint may have to name."""

    @property
    def trouble(self) -> str:
        """Why nothing can be written at the moment; empty where it can."""
        return self._journal.trouble

    @property
    def num_failures(self) -> int:
        """Writes that had to be tried again."""
        return self._journal.num_failures

    def memory(self, position: int) -> LoggedEvents | None:
        """What was found of the time around entry `position`."""
        memory, self._found = memory_of(self._found, position=position), []
        return memory

    def go_back(self, position: int) -> None:
        """The run goes on from a checkpoint at `position` alone: what came after it, and what was finished
        when it was made, is done anew. Raises OSError."""
        self._journal.skip_to(position)
        if self._journal.next_number:
            self._append(EventKind.REWOUND, {"to": position})
        self._found = []

    def begin(self) -> None:
        """The run begins, or goes on after what was found."""
        if self._found:
            self.go_back(0)

    def issued(self, group_id: int) -> None:
        self._append(EventKind.ISSUED, {"group_id": group_id})

    def finished(self, delivery: GroupBatch) -> "asyncio.Future[None]":
        """Groups came home. Only their bytes are written here; what they say is read by who recalls them."""
        number = self._journal.next_number
        facts = {
            "orders": [replace(order, num_completed_turns=0) for order in delivery.orders],
            "summaries": delivery.summaries,
            "num_rows": delivery.num_rows,
        }
        for index, order in enumerate(delivery.orders):
            # Of a group that came twice the first counts.
            self._places.setdefault(order.group_id, LogPosition(number=number, index=index))
        return asyncio.wrap_future(self._append(EventKind.FINISHED, facts, body=delivery.rows))

    def found(self, group_id: int, place: LogPosition) -> None:
        """A group that is in the journal already."""
        self._places.setdefault(group_id, place)

    def turns(self, group_ids: Sequence[int], rows: pa.Buffer) -> int:
        """Turns of these groups' dialogues are over. The number of the entry."""
        number = self._journal.next_number
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
        """All events until now are on the disk."""
        if self._last is not None:
            await asyncio.wrap_future(self._last)

    def account(
        self,
        *,
        position: int | None,
        ready: Sequence[int],
        settled: Mapping[int, Sequence[str]],
        first_turns: int | None,
    ) -> dict[str, Any]:
        """A checkpoint's account of the journal, JSON: the next event (`position`; None: the journal's end),
        the first entry that it needs, and where the groups are that are ready, or settled and in no report
        yet (their outcomes by id). `first_turns`: the oldest entry of turns that are needed. Other groups are
        forgotten."""
        position = self._journal.next_number if position is None else position
        self.keep((*ready, *settled))
        needed = [place.number for place in self._places.values()]
        places = {one: [place.number, place.index] for one, place in self._places.items()}
        return {
            "position": position,
            "first": min([position, *needed, *([] if first_turns is None else [first_turns])]),
            "ready": [places[one] for one in ready],
            "settled": [[*places[one], list(outcomes)] for one, outcomes in settled.items()],
        }

    def keep(self, group_ids: Sequence[int]) -> None:
        """Only these groups an account will still name."""
        self._places = {one: self._places[one] for one in group_ids if one in self._places}

    def forget(self, before: int) -> None:
        """No checkpoint needs an entry before this one. Raises OSError."""
        self._journal.forget(before)

    def close(self) -> None:
        """Waits for what is under way, for a limited time."""
        self._journal.close()

    def _append(self, kind: str, facts: Mapping[str, Any], **body: pa.Buffer) -> "Future[None]":
        self._last = self._journal.append(kind, facts=facts, **body)
        return self._last
