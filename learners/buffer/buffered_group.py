"""Records of a group inside the buffer: finished, and with a known outcome."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.ledger import usable_trajectories


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferedGroup:
    """A generated group: its order, its numbers, and a payload that the buffer never looks into."""

    order: GroupOrder
    summary: GroupSummary
    payload: Any
    """`GroupRows`, where the group's Arrow table lies, in a cluster; any object in tests."""

    @property
    def usable(self) -> tuple[int, ...]:
        """Indexes of the trajectories to train; the others failed or have no finite reward."""
        return usable_trajectories(self.summary)


@dataclass(frozen=True, kw_only=True, slots=True)
class SettledGroup:
    """A group whose fate is known."""

    group: BufferedGroup
    outcomes: Sequence[str]  # [num_dialogues]
    """"trained" or a drop reason, for each trajectory."""
