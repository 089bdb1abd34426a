"""Buffer of training: slots, ledger, and whole groups bounded in age. No Ray, no clock, no tokens.

A slot is occupied when a group is ordered. It is free again when the group is dropped, or when the weights of
the step that trained it are live. With `groups_per_step * (max_off_policy_steps + 1)` slots no group runs
further ahead than the bound; `max_off_policy_steps=0` is synchronous training. A group that is still too old
when a step wants it (a straggler) is dropped as stale.
"""

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.ledger import TRAINED, Ledger
from simulators.task import TaskKey, TaskSource

SlotState = Literal["waiting", "held", "ready", "taken", "trained"]
"""waiting: to be issued again. held: a worker plays it. ready: finished, for a step to take. taken: a step
trains it. trained: its slot waits for the weights of its step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferSizes:
    """The sizes that the buffer obeys, and the seed of its orders."""

    group_size: int
    groups_per_step: int
    max_off_policy_steps: int
    seed: int
    extra_dialogues: int = 0

    @property
    def num_slots(self) -> int:
        return self.groups_per_step * (self.max_off_policy_steps + 1)


@dataclass(kw_only=True, slots=True)
class _Slot:
    order: GroupOrder
    state: SlotState
    group: FinishedGroup | None = None
    """While ready or taken."""


class Buffer:
    """Issues orders and keeps the finished groups. Each open group has one slot, in one `SlotState`."""

    def __init__(self, sizes: BufferSizes, *, source: TaskSource):
        self.sizes = sizes
        self.num_puts_ignored = 0
        """Groups that arrived a second time, or after they were resolved."""
        self.num_lost_in_a_row = 0
        """Groups since the last one with a trajectory that can be trained."""
        self.next_group_id = 0
        self.resolved: list[FinishedGroup] = []
        """Groups that were trained or dropped since the last `pop_resolved`, with their outcomes."""
        self._source = source
        self._num_issued = 0
        """Trajectories of all orders."""
        self._outcomes = Counter[str]()
        """Resolved trajectories by outcome."""
        self._slots: dict[int, _Slot] = {}
        """By group id, ascending."""
        self._waiting: list[int] = []
        """Heap of the ids of waiting groups; ids of groups in another state may be left in it."""
        self._ready: list[tuple[int, int]] = []
        """Heap of (oldest version, group id) of exactly the ready groups: thousands may be open."""

    def issue(self) -> GroupOrder | None:
        """Moves a group to "held": the oldest waiting one, else a new one; None if no slot is free."""
        slot = self._next_waiting()
        if slot is None and self.num_open < self.sizes.num_slots:
            slot = self._draw()
        if slot is None:
            return None
        slot.state = "held"
        return slot.order

    def draw_to(self, group_id: int) -> None:
        """Draws the orders up to this group's again, as "waiting": for a replay."""
        while self.next_group_id <= group_id:
            self._wait(self._draw())

    def put(self, order: GroupOrder, *, summary: GroupSummary, payload: Any) -> bool:
        """Accepts a finished group; False, without effect, if it is not open any more."""
        group_id = order.group_id
        slot = self._slots.get(group_id)
        # A group may arrive after it was requeued: it is as good as the one that would be played again.
        if slot is None or slot.state not in ("waiting", "held"):
            self.num_puts_ignored += 1
            return False
        assert summary.group_id == group_id and len(summary.rewards) == order.num_dialogues
        self.num_lost_in_a_row = 0 if summary.usable else self.num_lost_in_a_row + 1
        slot.group = FinishedGroup(order=order, summary=summary, payload=payload)
        slot.state = "ready"
        if summary.group_drop_reason:
            self._drop(group_id, summary.group_drop_reason)
        else:
            heapq.heappush(self._ready, (summary.oldest_version, group_id))
        return True

    def take(self, num_groups: int, *, policy_version: int) -> list[FinishedGroup] | None:
        """The `num_groups` oldest groups fresh enough for a step on `policy_version`; None if there are
        fewer. They stay in flight until `mark_trained`."""
        self.drop_stale(policy_version=policy_version)
        if len(self._ready) < num_groups:
            return None
        ids = [heapq.heappop(self._ready)[1] for _ in range(num_groups)]
        for group_id in ids:
            self._slots[group_id].state = "taken"
        return [self.taken(group_id) for group_id in ids]

    def drop_stale(self, *, policy_version: int) -> None:
        """Drops groups that no step on `policy_version` or later may train, which frees their slots."""
        oldest_allowed = policy_version - self.sizes.max_off_policy_steps
        while self._ready and self._ready[0][0] < oldest_allowed:
            self._drop(heapq.heappop(self._ready)[1], "stale")

    def taken(self, group_id: int) -> FinishedGroup:
        """A group that a step has taken and not trained yet."""
        group = self._slot(group_id, "taken").group
        assert group is not None
        return group

    def mark_trained(self, group_ids: Iterable[int]) -> None:
        """Resolves taken groups as trained. Their slots stay occupied until `release`."""
        for group_id in group_ids:
            slot = self._slot(group_id, "taken")
            self._resolve(slot, TRAINED)
            slot.state, slot.group = "trained", None

    def release(self, group_ids: Iterable[int]) -> None:
        """Frees the slots of trained groups: the weights of their step are live."""
        for group_id in group_ids:
            self._slot(group_id, "trained")
            del self._slots[group_id]

    def requeue(self, group_ids: Iterable[int]) -> None:
        """Moves held groups to "waiting": their workers are lost, or too late."""
        for group_id in group_ids:
            self._wait(self._slot(group_id, "held"))

    def requeue_ready(self) -> None:
        """Moves all ready groups to "waiting": their tables are lost."""
        for _, group_id in self._ready:
            self._wait(self._slot(group_id, "ready"))
        self._ready = []

    def pop_resolved(self) -> list[FinishedGroup]:
        """The groups that were trained or dropped since the last call, in that order."""
        resolved, self.resolved = self.resolved, []
        return resolved

    def unresolved(self, group_ids: Iterable[int]) -> set[int]:
        """Those of these groups that are not trained or dropped yet, drawn or not."""
        open_ids = set(self.ids("waiting", "held", "ready", "taken"))
        return {one for one in group_ids if one in open_ids or one >= self.next_group_id}

    def ids(self, *states: SlotState) -> list[int]:
        """Ids of the groups in these states, ascending."""
        return [group_id for group_id, slot in self._slots.items() if slot.state in states]

    @property
    def num_open(self) -> int:
        """Occupied slots."""
        return len(self._slots)

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    def ledger(self) -> Ledger:
        """The outcome of every trajectory. Raises AssertionError if the ledger does not balance."""
        in_flight = sum(order.num_dialogues for order in self._open_orders())
        return Ledger.of(self._outcomes, issued=self._num_issued, in_flight=in_flight)

    def state(self) -> dict[str, Any]:
        """JSON from which a later run resumes. Of an open group only the order is saved, to be played
        again."""
        return {
            "num_drawn": self._source.num_drawn,
            "next_group_id": self.next_group_id,
            "ledger": {"issued": self._num_issued, "settled": dict(self._outcomes)},
            "open_orders": [dataclasses.asdict(order) for order in self._open_orders()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], *, sizes: BufferSizes, source: TaskSource) -> Self:
        """Resumes from `state`: no group is skipped, none is counted twice. Sets `source.num_drawn`."""
        buffer = cls(sizes, source=source)
        source.num_drawn = state["num_drawn"]
        buffer.next_group_id = state["next_group_id"]
        buffer._num_issued = state["ledger"]["issued"]
        buffer._outcomes.update(state["ledger"]["settled"])
        for saved in state["open_orders"]:
            order = GroupOrder(**{**saved, "task_key": TaskKey(**saved["task_key"])})
            buffer._wait(buffer._add(order))
        return buffer

    def _next_waiting(self) -> _Slot | None:
        while self._waiting:
            slot = self._slots.get(heapq.heappop(self._waiting))
            if slot is not None and slot.state == "waiting":
                return slot
        return None

    def _draw(self) -> _Slot:
        order = GroupOrder(
            group_id=self.next_group_id,
            task_key=self._source.draw(),
            group_size=self.sizes.group_size,
            seed=self.sizes.seed,
            num_extra=self.sizes.extra_dialogues,
        )
        self.next_group_id += 1
        self._num_issued += order.num_dialogues
        return self._add(order)

    def _add(self, order: GroupOrder) -> _Slot:
        slot = self._slots[order.group_id] = _Slot(order=order, state="waiting")
        return slot

    def _wait(self, slot: _Slot) -> None:
        slot.state, slot.group = "waiting", None
        heapq.heappush(self._waiting, slot.order.group_id)

    def _slot(self, group_id: int, state: SlotState) -> _Slot:
        slot = self._slots[group_id]
        assert slot.state == state, f"group {group_id} is {slot.state}, not {state}"
        return slot

    def _drop(self, group_id: int, reason: str) -> None:
        self._resolve(self._slots.pop(group_id), reason)

    def _resolve(self, slot: _Slot, outcome: str) -> None:
        assert slot.group is not None
        outcomes = tuple(reason or outcome for reason in slot.group.summary.drop_reasons)
        self._outcomes.update(outcomes)
        self.resolved.append(dataclasses.replace(slot.group, outcomes=outcomes))

    def _open_orders(self) -> list[GroupOrder]:
        """Of the groups that are not resolved, in order of their ids."""
        return [slot.order for slot in self._slots.values() if slot.state != "trained"]
