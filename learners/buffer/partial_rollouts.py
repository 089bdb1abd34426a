"""Store of partial rollouts: the completed turns of unfinished dialogues, kept until another actor resumes
them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turns:
    number: int
    """Number of their log entry; 0 without a log."""
    count: int
    rows: pa.Buffer


class PartialRollouts:
    """Turns by group. Their bytes are not read here: most groups are finished where they were started."""

    def __init__(self) -> None:
        self._turns: dict[int, list[_Turns]] = {}

    def add(self, group_ids: Sequence[int], rows: pa.Buffer, *, number: int = 0) -> None:
        """Adds turns of these groups; a group's id occurs once per turn."""
        for group_id in set(group_ids):
            turns = _Turns(number=number, count=group_ids.count(group_id), rows=rows)
            self._turns.setdefault(group_id, []).append(turns)

    def forget(self, group_id: int) -> None:
        """Drops the turns of a finished group."""
        self._turns.pop(group_id, None)

    def keep(self, group_ids: Iterable[int]) -> None:
        """Drops the turns of all other groups."""
        kept = set(group_ids)
        self._turns = {group_id: turns for group_id, turns in self._turns.items() if group_id in kept}

    def count(self, group_id: int) -> int:
        """Number of a group's turns."""
        return sum(turns.count for turns in self._turns.get(group_id, ()))

    def rows(self, group_id: int) -> list[pa.Buffer]:
        """The blocks of rows with the group's turns, oldest first; they also hold turns of other groups."""
        return [turns.rows for turns in self._turns.get(group_id, ())]

    @property
    def first_number(self) -> int | None:
        """Number of the oldest log entry that is needed; None without any."""
        return min((turns[0].number for turns in self._turns.values()), default=None)
