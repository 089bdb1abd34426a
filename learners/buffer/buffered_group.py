"""Records of a group inside the buffer: finished, and with a known outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.trajectory import GroupOrder, GroupSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferedGroup:
    """A generated group: its order, its numbers, and a payload that the buffer never looks into."""

    order: GroupOrder
    summary: GroupSummary
    payload: Any
    """`GroupRows`, where the group's Arrow table lies, in a cluster; any object in tests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettledGroup:
    """A group whose fate is known."""

    group: BufferedGroup
    outcomes: Sequence[str]  # [num_dialogues]
    """"trained" or a drop reason, for each trajectory."""
