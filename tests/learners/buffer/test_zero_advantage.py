"""A group is dropped as flat exactly when its own gym's estimator would teach nothing, and every dropped
group is made up for by one other."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actors.group_summary import summarize
from actors.trajectory import GroupOrder, GroupSummary, StopReason, Turn
from learners.advantages.config import ADVANTAGE_CONFIGS, SpreadConfig
from learners.advantages.estimators import ADVANTAGES
from learners.advantages.turn_credit import CREDITS, SCORES, USERRL_CREDITS, USERRL_SCORES
from learners.batch.samples import gym_advantages, samples_from_table, without_truncated
from learners.buffer.buffer import Buffer, BufferSizes
from learners.buffer.ledger import usable_trajectories
from learners.buffer.zero_advantage import is_flat
from learners.config import LearnerConfig
from simulators.task import TaskSource
from tests.effort import examples
from tests.fakes import make_key, make_summary
from tests.learners.tiny_parts import make_table, make_turn

OK, FAILED, CUT = StopReason.TERMINATED, StopReason.SIMULATOR_ERROR, StopReason.MAX_TURNS


@st.composite
def configs(draw: st.DrawFn) -> LearnerConfig:
    """Any estimator with all that goes with it, but those that ask the model."""
    advantage = draw(st.sampled_from([name for name, entry in ADVANTAGES.items() if not entry.asks_critic]))
    is_released = advantage == "userrl_compat"
    keys = {
        "trajectory_score": draw(st.sampled_from(USERRL_SCORES if is_released else list(SCORES))),
        "turn_credit": draw(st.sampled_from(USERRL_CREDITS if is_released else list(CREDITS))),
        "gamma": draw(st.sampled_from([0.5, 0.8, 1.0])),
    }
    own = {key: keys[key] for key in keys if key in ADVANTAGE_CONFIGS[advantage].model_fields}
    return LearnerConfig.model_validate({"advantage": {"type": advantage, **own}})


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[list[Turn], StopReason]:
    reason = draw(st.sampled_from([OK, OK, OK, CUT, FAILED]))
    rewards = draw(
        st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, -0.5]), min_size=reason is not FAILED, max_size=3)
    )
    turns = []
    for at, reward in enumerate(rewards):
        turn = make_turn([1, 2], [3] * draw(st.integers(1, 2)), reward=reward, forked=at == 0)
        turns.append(replace(turn, feedback=draw(st.sampled_from(["", "yes", "no"]))))
    return turns, reason


@settings(deadline=None, max_examples=examples(250))
@given(config=configs(), group=st.lists(trajectories(), min_size=2, max_size=4), masks=st.booleans())
def test_a_group_is_flat_exactly_when_no_sample_has_an_advantage(
    config: LearnerConfig, group: list[tuple[list[Turn], StopReason]], masks: bool
):
    table = make_table(group)
    order = GroupOrder(group_id=0, task_key=make_key(), group_size=len(group), seed=0)
    summary = summarize(order, table, duration_s=0.0)
    assume(len(usable_trajectories(summary)) >= 2)  # else it is dropped as too_few
    samples = samples_from_table(table, advantages=gym_advantages(table, config.credit_of))
    if masks:
        samples, _ = without_truncated(samples, tables=[table])
    earned = {tuple(summary.turn_rewards[index]) for index in usable_trajectories(summary)}
    differ = len(earned) > 1 or not ADVANTAGES[config.advantage.type].spreads
    teaches = differ and any(sample.advantages.any() for sample in samples)
    assert is_flat(summary, credit_of=config.credit_of, masks_truncated=masks) != teaches


def summary_of(
    rewards: Sequence[Sequence[float]],
    *,
    gym: str = "function",
    lengths: Sequence[Sequence[int]] | None = None,
) -> GroupSummary:
    return replace(
        make_summary([sum(row) for row in rewards], gym=gym),
        turn_rewards=rewards,
        turn_tokens=lengths or [[1] * len(row) for row in rewards],
        turn_states=[list(range(len(row))) for row in rewards],
    )


def flat(summary: GroupSummary, **advantage: object) -> bool:
    return is_flat(summary, credit_of=LearnerConfig.model_validate({"advantage": advantage}).credit_of)


def test_equal_sums_are_flat_only_where_sums_are_compared():
    """One success after one turn, or after three."""
    group = summary_of([[1.0], [0.0, 0.0, 1.0]])
    assert flat(group, trajectory_score="sum")
    assert not flat(group, trajectory_score="reward_to_go", gamma=0.5)
    assert not flat(group, type="turn_loo", gamma=0.5)


def test_different_sums_are_flat_where_only_the_best_turn_counts():
    group = summary_of([[1.0, 0.0], [1.0, 1.0]])
    assert flat(group, trajectory_score="max")
    assert not flat(group, trajectory_score="sum")


def test_a_group_of_total_failures_is_flat_by_the_released_arithmetic():
    """Nothing differs among failures; one success makes the difference."""
    failures = summary_of([[0.0], [0.0, 0.0]])
    released = {"type": "userrl_compat", "turn_credit": "reward_to_go"}
    assert flat(failures, **released)
    assert not flat(summary_of([[0.0], [0.0, 1.0]]), **released)


def test_trajectories_that_earned_the_same_are_flat_whatever_is_left_by_rounding():
    """Released arithmetic leaves a score of 0.056 in eight times 0.7; the printed equation compares none."""
    group = summary_of([[0.7, 0.7]] * 8)
    assert flat(group, type="userrl_compat", trajectory_score="sum")
    assert flat(group, type="userrl_printed", turn_credit="naive")


def test_states_are_compared_where_the_estimator_asks_for_them():
    """Equal outcomes; from the second state on one earned at once and the other only later."""
    group = summary_of([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    apart = replace(group, turn_states=[[0, 1, 2], [0, 3, 4]])
    gigpo = {"type": "gigpo", "trajectory_score": "sum", "gamma": 1.0}
    assert not flat(group, **gigpo)
    assert flat(apart, **gigpo)


def test_turns_without_a_token_teach_nothing():
    group = summary_of([[0.0, 1.0], [0.0]], lengths=[[0, 3], [0]])
    assert not flat(group, trajectory_score="sum")
    assert flat(replace(group, turn_tokens=[[0, 0], [0]]), trajectory_score="sum")


def test_each_gym_is_asked_by_its_own_rule():
    own = SpreadConfig(trajectory_score="last")
    config = LearnerConfig(advantage=SpreadConfig(trajectory_score="sum"), by_gym={"tau": own})
    rewards = [[0.0, 1.0], [1.0, 1.0]]
    assert is_flat(summary_of(rewards, gym="tau"), credit_of=config.credit_of)
    assert not is_flat(summary_of(rewards, gym="travel"), credit_of=config.credit_of)


@pytest.mark.parametrize("advantage", [name for name, entry in ADVANTAGES.items() if entry.asks_critic])
def test_what_only_the_model_can_tell_is_never_flat(advantage: str):
    assert not flat(summary_of([[0.0], [0.0]]), type=advantage)


def test_a_group_that_gains_are_still_added_to_is_never_flat():
    assert not is_flat(summary_of([[0.0], [0.0]]), credit_of=LearnerConfig().credit_of, has_gains=True)


@settings(deadline=None, max_examples=examples(100))
@given(
    config=configs(),
    groups=st.lists(
        st.lists(st.lists(st.sampled_from([0.0, 0.5]), min_size=1, max_size=2), min_size=2, max_size=2),
        max_size=30,
    ),
    groups_per_step=st.integers(1, 3),
    max_off_policy_steps=st.integers(0, 2),
)
def test_a_step_is_always_full_and_every_dropped_group_is_refilled_by_one_order(
    config: LearnerConfig,
    groups: list[list[list[float]]],
    groups_per_step: int,
    max_off_policy_steps: int,
):
    """Whatever share is flat: orders are issued for all free slots, and come home one by one."""
    asks = partial(is_flat, credit_of=config.credit_of)
    sizes = BufferSizes(
        group_size=2, groups_per_step=groups_per_step, max_off_policy_steps=max_off_policy_steps, seed=7
    )
    source = TaskSource({"function": 1.0}, split="train", seed=7, difficulty=0)
    buffer = Buffer(sizes, source=source, is_flat=asks)
    open_orders = [order for _ in range(sizes.num_slots) if (order := buffer.issue())]
    assert (len(open_orders), buffer.issue()) == (sizes.num_slots, None)
    version = num_trained = num_flat = 0
    for rewards in groups:
        order = open_orders.pop(0)
        summary = replace(summary_of(rewards), group_id=order.group_id, oldest_version=version)
        buffer.put(order, summary=summary, payload=None)
        refills = [order for _ in range(3) if (order := buffer.issue())]
        assert len(refills) == asks(summary), "a flat group's slot is refilled at once, no other's is"
        num_flat += asks(summary)
        if (step := buffer.take(groups_per_step, policy_version=version)) is not None:
            assert len(step) == groups_per_step
            assert not any(asks(group.summary) for group in step)
            ids = [group.order.group_id for group in step]
            buffer.book(ids)
            buffer.release(ids)
            num_trained, version = num_trained + groups_per_step, version + 1
            refills += [order for _ in range(9) if (order := buffer.issue())]
            assert len(refills) == groups_per_step
        assert len(open_orders) + len(refills) + buffer.num_ready == sizes.num_slots
        open_orders += refills
        ledger = buffer.ledger()
        assert (ledger.trained, ledger.dropped["flat"]) == (2 * num_trained, 2 * num_flat)
        assert sum(ledger.dropped.values()) == 2 * num_flat
        assert ledger.in_flight == 2 * sizes.num_slots
        assert ledger.issued == ledger.trained + sum(ledger.dropped.values()) + ledger.in_flight
