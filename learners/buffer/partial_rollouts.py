"""Store of partial rollouts: the completed turns of unfinished dialogues, kept until another actor resumes
them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turns:
    number: int
    """Of their entry in a journal; 0 where there is none."""
    count: int
    rows: pa.Buffer


class PartialRollouts:
    """By group. The bytes are not read here: most groups end where they began."""

    def __init__(self) -> None:
        self._turns: dict[int, list[_Turns]] = {}

    def add(self, group_ids: Sequence[int], rows: pa.Buffer, *, number: int = 0) -> None:
        """Turns of these groups, a group's id once for each turn."""
        for group_id in set(group_ids):
            turns = _Turns(number=number, count=group_ids.count(group_id), rows=rows)
            self._turns.setdefault(group_id, []).append(turns)

    def forget(self, group_id: int) -> None:
        """The group is over."""
        self._turns.pop(group_id, None)

    def keep(self, group_ids: Iterable[int]) -> None:
        """All others are over."""
        kept = set(group_ids)
        self._turns = {group_id: turns for group_id, turns in self._turns.items() if group_id in kept}

    def count(self, group_id: int) -> int:
        """Turns of a group."""
        return sum(turns.count for turns in self._turns.get(group_id, ()))

    def rows(self, group_id: int) -> list[pa.Buffer]:
        """The group's turns in the order in which they came, among those of others."""
        return [turns.rows for turns in self._turns.get(group_id, ())]

    @property
    def first_number(self) -> int | None:
        """Of the oldest entry that is needed; None where none is."""
        return min((turns[0].number for turns in self._turns.values()), default=None)
