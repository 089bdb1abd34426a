"""The buffer: slots, ledger, and whole groups bounded in age. No Ray, no clock, no tokens.

A slot is taken when a group is ordered and freed when the weights of the step that used it are live, which is
some time after the group is booked as trained, or when the group is dropped. With
`groups_per_step * (max_off_policy_steps + 1)` slots nothing runs further ahead than the bound; with
`max_off_policy_steps=0` the same code is synchronous training. What is still too old when a step wants it (a
straggler) is dropped as stale.
"""

import dataclasses
import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from actors.trajectory import GroupOrder, GroupSummary
from learners.buffer.buffered_group import BufferedGroup, SettledGroup
from learners.buffer.ledger import TRAINED, Ledger, LedgerCounts
from simulators.task import TaskKey, TaskSource


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferSizes:
    """The sizes that the buffer obeys, and the seed that its orders carry."""

    group_size: int
    groups_per_step: int
    max_off_policy_steps: int
    seed: int
    extra_dialogues: int = 0

    @property
    def num_slots(self) -> int:
        return self.groups_per_step * (self.max_off_policy_steps + 1)


class Buffer:
    """Hands out orders and keeps what comes back. Every open order is in exactly one of four places:
    waiting to be issued again, with a holder, ready, or taken."""

    def __init__(self, sizes: BufferSizes, *, source: TaskSource):
        self.sizes = sizes
        self.num_puts_ignored = 0
        """Groups that came back a second time, or after their fate was known."""
        self.num_lost_in_a_row = 0
        """Groups since the last one in which any trajectory went to its end and got a reward."""
        self._source = source
        self._counts = LedgerCounts()
        self._next_group_id = 0
        self._waiting: OrderedDict[int, GroupOrder] = OrderedDict()
        """By group id, ascending."""
        self._held: dict[int, GroupOrder] = {}
        self._ready: dict[int, BufferedGroup] = {}
        self._oldest: list[tuple[int, int]] = []
        """A heap of (oldest version, group id) of all that are ready: no call looks at each of thousands."""
        self._taken: dict[int, BufferedGroup] = {}
        self._booked: set[int] = set()
        """Trained groups whose slot waits for the weights of their step."""
        self._settled: list[SettledGroup] = []

    def issue(self) -> GroupOrder | None:
        """An order to be held, oldest unfinished one first; None where no slot is free."""
        if self._waiting:
            order = self._waiting.popitem(last=False)[1]
        elif self.num_open < self.sizes.num_slots:
            order = self._draw()
        else:
            return None
        self._held[order.group_id] = order
        return order

    def draw_to(self, group_id: int) -> None:
        """Draws orders up to this group's, to be issued: what was done before is done again."""
        while self._next_group_id <= group_id:
            order = self._draw()
            self._waiting[order.group_id] = order

    def put(self, order: GroupOrder, *, summary: GroupSummary, payload: Any) -> bool:
        """Takes a finished group in; False where it was not wanted (any more), which changes nothing."""
        group_id = order.group_id
        if group_id not in self._held and group_id not in self._waiting:
            self.num_puts_ignored += 1
            return False
        assert summary.group_id == group_id and len(summary.rewards) == order.num_dialogues
        # A group may come home after its holder was given up: it is as good as the one to come.
        self._held.pop(group_id, None)
        self._waiting.pop(group_id, None)
        self.num_lost_in_a_row = 0 if summary.usable else self.num_lost_in_a_row + 1
        group = BufferedGroup(order=order, summary=summary, payload=payload)
        if summary.group_drop_reason:
            self._settle(group, summary.group_drop_reason)
        else:
            self._ready[group_id] = group
            heapq.heappush(self._oldest, (summary.oldest_version, group_id))
        return True

    def take(self, num_groups: int, *, policy_version: int) -> list[BufferedGroup] | None:
        """The `num_groups` oldest groups fresh enough for a step on `policy_version`; None if fewer are.

        They stay in flight until `book`.
        """
        self.drop_stale(policy_version=policy_version)
        if len(self._ready) < num_groups:
            return None
        groups = [self._ready.pop(heapq.heappop(self._oldest)[1]) for _ in range(num_groups)]
        self._taken.update((group.order.group_id, group) for group in groups)
        return groups

    def drop_stale(self, *, policy_version: int) -> None:
        """Drops what no step on `policy_version` or later may train, and so frees its slots."""
        oldest_allowed = policy_version - self.sizes.max_off_policy_steps
        while self._oldest and self._oldest[0][0] < oldest_allowed:
            self._settle(self._ready.pop(heapq.heappop(self._oldest)[1]), "stale")

    def taken(self, group_id: int) -> BufferedGroup:
        """A group that a step has taken and not yet booked."""
        return self._taken[group_id]

    def book(self, group_ids: Iterable[int]) -> None:
        """Books taken groups as trained. Their slots stay taken until `release`."""
        for group_id in group_ids:
            self._settle(self._taken.pop(group_id), TRAINED)
            self._booked.add(group_id)

    def release(self, group_ids: Iterable[int]) -> None:
        """Frees the slots of booked groups: the weights of their step are live."""
        for group_id in group_ids:
            self._booked.remove(group_id)

    def take_back(self, group_ids: Iterable[int]) -> None:
        """Gives up on the holders of these groups: they are issued again first. The slots stay taken."""
        for group_id in group_ids:
            self._waiting[group_id] = self._held.pop(group_id)
        self._waiting = OrderedDict(sorted(self._waiting.items()))

    def unready(self) -> None:
        """What was finished and not taken is to be issued again: it was lost."""
        self._waiting |= {group_id: group.order for group_id, group in self._ready.items()}
        self._waiting = OrderedDict(sorted(self._waiting.items()))
        self._ready, self._oldest = {}, []

    def settle_again(self, settled: Iterable[SettledGroup]) -> None:
        """Groups that `state` knows as settled, and that nobody was told of: `pop_settled` gives them."""
        self._settled += settled

    def pop_settled(self) -> list[SettledGroup]:
        """The groups whose fate was decided since the last call, in that order."""
        settled, self._settled = self._settled, []
        return settled

    def to_come(self, group_ids: Iterable[int]) -> set[int]:
        """Those of these groups whose fate is still to be decided, ordered or not."""
        open_ids = {order.group_id for order in self._open_orders()}
        return {one for one in group_ids if one in open_ids or one >= self._next_group_id}

    @property
    def settled(self) -> Sequence[SettledGroup]:
        """What `pop_settled` would give."""
        return self._settled

    @property
    def num_settled(self) -> int:
        """Groups that `pop_settled` would give."""
        return len(self._settled)

    @property
    def next_group_id(self) -> int:
        """Of the next group to be drawn."""
        return self._next_group_id

    @property
    def num_open(self) -> int:
        """Slots taken."""
        places = (self._waiting, self._held, self._ready, self._taken, self._booked)
        return sum(len(place) for place in places)

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    @property
    def ready(self) -> list[int]:
        """Ids of the groups that a step may take."""
        return list(self._ready)

    @property
    def unfinished(self) -> list[int]:
        """Ids of the groups that are still to come home."""
        return [*self._waiting, *self._held]

    @property
    def held(self) -> list[int]:
        """Ids of the groups that somebody works on."""
        return list(self._held)

    @property
    def waiting(self) -> list[int]:
        """Group ids to be issued again, that nobody has asked for yet."""
        return list(self._waiting)

    def ledger(self) -> Ledger:
        """Where every trajectory went. Raises AssertionError if it does not close."""
        return self._counts.ledger(in_flight=sum(order.num_dialogues for order in self._open_orders()))

    def state(self) -> dict[str, Any]:
        """JSON from which a later run goes on. Of what is open the order is saved, to be generated again."""
        orders = sorted(self._open_orders(), key=lambda order: order.group_id)
        return {
            "num_drawn": self._source.num_drawn,
            "next_group_id": self._next_group_id,
            "ledger": self._counts.state(),
            "open_orders": [dataclasses.asdict(order) for order in orders],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], *, sizes: BufferSizes, source: TaskSource) -> Self:
        """Goes on from `state`: nothing is skipped and nothing is booked twice. Sets `source.num_drawn`."""
        buffer = cls(sizes, source=source)
        source.num_drawn = state["num_drawn"]
        buffer._next_group_id = state["next_group_id"]
        buffer._counts = LedgerCounts(**state["ledger"])
        for saved in state["open_orders"]:
            order = GroupOrder(**{**saved, "task_key": TaskKey(**saved["task_key"])})
            buffer._waiting[order.group_id] = order
        return buffer

    def _draw(self) -> GroupOrder:
        order = GroupOrder(
            group_id=self._next_group_id,
            task_key=self._source.draw(),
            group_size=self.sizes.group_size,
            seed=self.sizes.seed,
            num_extra=self.sizes.extra_dialogues,
        )
        self._next_group_id += 1
        self._counts.issued += order.num_dialogues
        return order

    def _settle(self, group: BufferedGroup, outcome: str) -> None:
        outcomes = tuple(reason or outcome for reason in group.summary.drop_reasons)
        self._counts.settle(outcomes)
        self._settled.append(SettledGroup(group=group, outcomes=outcomes))

    def _open_orders(self) -> list[GroupOrder]:
        finished = [group.order for group in (*self._ready.values(), *self._taken.values())]
        return [*self._waiting.values(), *self._held.values(), *finished]
