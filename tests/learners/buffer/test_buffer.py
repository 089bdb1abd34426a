"""Laws of the buffer and its ledger: no Ray, no clock."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupOrder, GroupSummary, StopReason
from learners.buffer.buffer import Buffer, BufferSizes
from learners.drop_reasons import LEDGER_REASONS
from simulators.task import TaskSource
from tests.effort import examples
from tests.fakes import make_summary

OK, FAILED = StopReason.TERMINATED, StopReason.SIMULATOR_ERROR


def source() -> TaskSource:
    return TaskSource({"function": 1.0, "travel": 1.0}, split="train", seed=7, difficulty=0)


def make_sizes(
    *, group_size: int = 2, groups_per_step: int = 2, max_off_policy_steps: int = 0
) -> BufferSizes:
    return BufferSizes(
        group_size=group_size,
        groups_per_step=groups_per_step,
        max_off_policy_steps=max_off_policy_steps,
        seed=7,
    )


def make_buffer(sizes: BufferSizes) -> Buffer:
    return Buffer(sizes, source=source())


def summary_of(
    order: GroupOrder, rewards: list[float], *, reasons: list[StopReason] | None = None, oldest: int = 0
) -> GroupSummary:
    summary = make_summary(rewards, stop_reasons=reasons, versions=(oldest, oldest))
    return replace(summary, group_id=order.group_id, task_key=order.task_key)


def test_lost_groups_are_counted_until_one_has_a_usable_trajectory():
    buffer = make_buffer(make_sizes())
    counts = []
    for reasons in ([FAILED, FAILED], [FAILED, FAILED], [OK, FAILED], [FAILED, FAILED]):
        order = buffer.issue()
        assert order is not None
        rewards = [math.nan if reason.failed else 0.5 for reason in reasons]
        buffer.put(order, summary=summary_of(order, rewards, reasons=reasons), payload=None)
        counts.append(buffer.num_lost_in_a_row)
    assert counts == [1, 2, 0, 1]


def test_groups_without_any_reward_count_as_lost():
    buffer = make_buffer(make_sizes())
    for count, rewards in enumerate(([math.nan, math.nan], [math.inf, math.nan]), start=1):
        finish(buffer, rewards)
        assert buffer.num_lost_in_a_row == count
    finish(buffer, [math.nan, 0.5])
    assert buffer.num_lost_in_a_row == 0


def finish(buffer: Buffer, rewards: list[float], *, oldest: int = 0) -> GroupOrder:
    order = buffer.issue()
    assert order is not None
    buffer.put(order, summary=summary_of(order, rewards, oldest=oldest), payload=None)
    return order


def test_synchronous_training_orders_the_groups_of_one_step():
    buffer = make_buffer(make_sizes(groups_per_step=2, max_off_policy_steps=0))
    assert [buffer.issue() is None for _ in range(3)] == [False, False, True]


def test_there_are_slots_for_one_step_of_groups_per_allowed_version():
    assert make_sizes(groups_per_step=4, max_off_policy_steps=2).num_slots == 12


def test_a_slot_is_freed_by_release_and_neither_by_take_nor_by_mark_trained():
    buffer = make_buffer(make_sizes(groups_per_step=1))
    order = finish(buffer, [0.0, 1.0])
    assert buffer.take(1, policy_version=0) is not None
    assert buffer.issue() is None
    buffer.mark_trained([order.group_id])
    assert buffer.issue() is None
    assert (buffer.ledger().trained, buffer.ledger().in_flight, buffer.num_open) == (2, 0, 1)
    buffer.release([order.group_id])
    assert buffer.issue() is not None


def test_a_group_that_became_stale_while_ready_is_dropped_when_a_step_wants_it():
    buffer = make_buffer(make_sizes(groups_per_step=1, max_off_policy_steps=1))
    orders = [finish(buffer, [0.0, 1.0], oldest=3) for _ in range(2)]
    taken = [buffer.take(1, policy_version=version) for version in (4, 5)]
    assert [[group.order for group in groups] if groups else None for groups in taken] == [orders[:1], None]
    assert buffer.ledger().dropped["stale"] == 2


def test_a_flat_group_is_dropped_and_frees_its_slot():
    buffer = make_buffer(make_sizes(groups_per_step=1))
    finish(buffer, [0.3, 0.1 + 0.2])
    assert buffer.ledger().dropped == dict.fromkeys(LEDGER_REASONS, 0) | {"flat": 2}
    assert buffer.issue() is not None


def test_a_failed_trajectory_is_dropped_alone_if_two_others_differ():
    buffer = make_buffer(make_sizes(group_size=3, groups_per_step=1))
    order = buffer.issue()
    assert order is not None
    summary = summary_of(order, [0.0, 1.0, math.nan], reasons=[OK, OK, FAILED])
    buffer.put(order, summary=summary, payload=None)
    groups = buffer.take(1, policy_version=0)
    assert groups is not None and groups[0].summary.usable == (0, 1)
    buffer.mark_trained([order.group_id])
    ledger = buffer.ledger()
    assert (ledger.issued, ledger.trained, ledger.dropped["failed"], ledger.in_flight) == (3, 2, 1, 0)


@pytest.mark.parametrize(
    ("rewards", "reasons", "dropped"),
    [
        ([0.0, math.nan, math.inf], [OK, FAILED, FAILED], {"too_few": 1, "failed": 2}),
        ([0.5, 0.5, math.nan], [OK, OK, FAILED], {"flat": 2, "failed": 1}),
        ([math.nan] * 3, [FAILED] * 3, {"failed": 3}),
        ([0.0, math.nan, math.inf], [OK, OK, OK], {"too_few": 1, "unscored": 2}),
        ([0.5, 0.5, math.nan], [OK, OK, OK], {"flat": 2, "unscored": 1}),
        ([math.nan] * 3, [OK, FAILED, OK], {"failed": 1, "unscored": 2}),
    ],
)
def test_each_trajectory_of_a_dropped_group_is_counted_under_its_own_reason(
    rewards: list[float], reasons: list[StopReason], dropped: dict[str, int]
):
    buffer = make_buffer(make_sizes(group_size=3, groups_per_step=1))
    order = buffer.issue()
    assert order is not None
    buffer.put(order, summary=summary_of(order, rewards, reasons=reasons), payload=None)
    assert {reason: count for reason, count in buffer.ledger().dropped.items() if count} == dropped


def test_a_group_one_version_too_old_is_stale_and_one_at_the_bound_is_not():
    buffer = make_buffer(make_sizes(groups_per_step=1, max_off_policy_steps=1))
    finish(buffer, [0.0, 1.0], oldest=1)
    kept = finish(buffer, [0.0, 1.0], oldest=2)
    groups = buffer.take(1, policy_version=3)
    assert groups is not None and [group.order.group_id for group in groups] == [kept.group_id]
    assert buffer.ledger().dropped["stale"] == 2


def test_take_returns_the_oldest_groups_first():
    buffer = make_buffer(make_sizes(groups_per_step=2, max_off_policy_steps=3))
    ids = [finish(buffer, [0.0, 1.0], oldest=oldest).group_id for oldest in (3, 1, 2)]
    groups = buffer.take(2, policy_version=3)
    assert groups is not None and [group.order.group_id for group in groups] == [ids[1], ids[2]]


def test_requeued_orders_are_issued_first_and_counted_once():
    buffer = make_buffer(make_sizes(groups_per_step=2, max_off_policy_steps=1))
    first, second, third = (buffer.issue() for _ in range(3))
    assert first and second and third
    buffer.requeue([first.group_id, third.group_id])
    assert (buffer.ids("waiting"), buffer.ids("held")) == (
        [first.group_id, third.group_id],
        [second.group_id],
    )
    assert [buffer.issue(), buffer.issue()] == [first, third]
    assert buffer.ledger().issued == 6


def test_a_second_put_is_ignored_and_counted():
    buffer = make_buffer(make_sizes())
    order = finish(buffer, [0.0, 1.0])
    before = buffer.ledger()
    assert not buffer.put(order, summary=summary_of(order, [1.0, 1.0]), payload=None)
    assert (buffer.ledger(), buffer.num_puts_ignored) == (before, 1)


def test_a_group_that_arrives_after_it_was_requeued_is_used_once():
    buffer = make_buffer(make_sizes(groups_per_step=1))
    order = buffer.issue()
    assert order is not None
    buffer.requeue([order.group_id])
    assert buffer.put(order, summary=summary_of(order, [0.0, 1.0]), payload=None)
    assert buffer.issue() is None


def test_metrics_name_every_reason_from_the_first_step():
    assert make_buffer(make_sizes()).ledger().metrics() == {
        "ledger/issued": 0.0,
        "ledger/trained": 0.0,
        "ledger/dropped/flat": 0.0,
        "ledger/dropped/failed": 0.0,
        "ledger/dropped/cut": 0.0,
        "ledger/dropped/surplus": 0.0,
        "ledger/dropped/unscored": 0.0,
        "ledger/dropped/no_tokens": 0.0,
        "ledger/dropped/too_few": 0.0,
        "ledger/dropped/stale": 0.0,
        "ledger/in_flight": 0.0,
    }


GROUPS = st.sampled_from(
    [
        ([0.0, 0.5, 1.0], [OK, OK, OK]),
        ([1.0, 0.0, 0.0], [OK, OK, OK]),
        ([0.5, 0.5, 0.5], [OK, OK, OK]),
        ([0.0, 1.0, math.nan], [OK, OK, FAILED]),
        ([0.0, 1.0, 1.0], [OK, FAILED, FAILED]),
        ([math.inf, 1.0, 0.0], [OK, OK, OK]),
        ([math.nan, math.nan, math.nan], [FAILED, FAILED, FAILED]),
    ]
)


class BufferLaws(RuleBasedStateMachine):
    """Any interleaving of a buffer's events, next to a model that only records them."""

    @initialize(max_off_policy_steps=st.integers(0, 2), groups_per_step=st.integers(1, 3))
    def start(self, max_off_policy_steps: int, groups_per_step: int) -> None:
        self.sizes = make_sizes(
            group_size=3, groups_per_step=groups_per_step, max_off_policy_steps=max_off_policy_steps
        )
        self.buffer = make_buffer(self.sizes)
        self.version = 0
        self.live = 0  # the engines' version; a step may end before its weights arrive
        self.unreleased: list[int] = []
        self.working: list[tuple[GroupOrder, int]] = []  # (order, version it began on)
        self.tasks: dict[int, int] = {}  # group id to task index
        self.taken: list[FinishedGroup] = []
        self.trained: Counter[int] = Counter()
        self.ended: list[GroupOrder] = []

    @rule(most=st.integers(1, 9))
    def issue(self, most: int) -> None:
        for order in (self.buffer.issue() for _ in range(most)):
            if order is None:
                return
            assert self.tasks.setdefault(order.group_id, order.task_key.index) == order.task_key.index
            assert order.group_id not in self.buffer.ids("waiting")
            self.working.append((order, self.live))

    @precondition(lambda self: self.working)
    @rule(groups=st.lists(GROUPS, min_size=1, max_size=4), newest_first=st.booleans())
    def put(self, groups: list[tuple[list[float], list[StopReason]]], newest_first: bool) -> None:
        for rewards, reasons in groups[: len(self.working)]:
            order, began = self.working.pop(-1 if newest_first else 0)
            summary = summary_of(order, rewards, reasons=reasons, oldest=began)
            self.buffer.put(order, summary=summary, payload=began)
            self.ended.append(order)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def put_again(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(self.ended))
        if order.group_id in self.buffer.ids("held") or order.group_id in self.buffer.ids("waiting"):
            return  # open again after a restore: the next put is its first
        before = self.buffer.ledger()
        assert not self.buffer.put(order, summary=summary_of(order, [0.0, 1.0, 2.0]), payload=None)
        assert self.buffer.ledger() == before

    @precondition(lambda self: self.buffer.num_ready)
    @rule()
    def take(self) -> None:
        groups = self.buffer.take(self.sizes.groups_per_step, policy_version=self.version)
        if groups is not None:
            assert len(groups) == self.sizes.groups_per_step
            for group in groups:
                assert self.version - group.summary.oldest_version <= self.sizes.max_off_policy_steps
                assert len(group.summary.rewards) == self.sizes.group_size
                assert len(group.summary.usable) >= 2
            self.taken += groups

    @precondition(lambda self: self.taken)
    @rule()
    def mark_trained(self) -> None:
        self.release()  # one version is sent at a time
        self.version += 1
        self.unreleased = [group.order.group_id for group in self.taken]
        self.buffer.mark_trained(self.unreleased)
        self.trained.update(self.unreleased)
        self.taken = []

    @rule()
    def release(self) -> None:
        """The weights of the last step are live."""
        num_open = self.buffer.num_open
        self.buffer.release(self.unreleased)
        assert self.buffer.num_open == num_open - len(self.unreleased)
        self.live, self.unreleased = self.version, []

    @rule(stragglers=st.integers(0, 2))
    def train_one_step(self, stragglers: int) -> None:
        """The usual sequence, so that random ones get far: all but a few old groups arrive."""
        self.issue(self.sizes.num_slots)
        usual = ([0.0, 0.5, 1.0], [OK, OK, OK])
        self.put([usual] * max(0, len(self.working) - stragglers), newest_first=True)
        self.take()
        if self.taken:
            self.mark_trained()

    @precondition(lambda self: self.buffer.ids("held"))
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        """Its worker is lost, or only late: its result may still arrive."""
        lost = data.draw(st.lists(st.sampled_from(self.buffer.ids("held")), unique=True, min_size=1))
        self.buffer.requeue(lost)
        assert set(lost) <= set(self.buffer.ids("waiting"))

    @rule()
    def save_and_restore(self) -> None:
        before = self.buffer.ledger()
        state = json.loads(json.dumps(self.buffer.state()))
        self.buffer = Buffer.from_state(state, sizes=self.sizes, source=source())
        assert self.buffer.ledger() == before
        self.working, self.taken, self.unreleased = [], [], []
        self.live = self.version

    @invariant()
    def laws(self) -> None:
        if not hasattr(self, "buffer"):
            return
        ledger = self.buffer.ledger()
        assert ledger.closes()
        assert self.buffer.num_open <= self.sizes.num_slots
        assert ledger.issued == self.sizes.group_size * len(self.tasks)
        # No task is skipped or drawn twice.
        assert sorted(self.tasks.values()) == list(range(len(self.tasks)))
        assert max(self.trained.values(), default=0) <= 1


TestBufferLaws = BufferLaws.TestCase
TestBufferLaws.settings = settings(max_examples=examples(150), stateful_step_count=50, deadline=None)
