"""A group is dropped as flat exactly when its gym's estimator gives no gradient; every dropped group is
replaced by one order; the learner uses the rollout actor's advantages bit for bit."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.group_summary import CreditedTable, summarize
from actors.trajectory import StopReason, Turn
from learners.advantages.config import ADVANTAGE_CONFIGS, SpreadConfig
from learners.advantages.estimators import ADVANTAGES
from learners.advantages.group_advantages import TURN_ADVANTAGE, credit_group, gym_advantages, state_keys
from learners.advantages.turn_credit import CREDITS, SCORES, USERRL_CREDITS, USERRL_SCORES
from learners.batch.samples import samples_from_table, without_truncated
from learners.buffer.buffer import Buffer, BufferSizes
from learners.config import LearnerConfig
from learners.training.step_batch import samples_of_step
from simulators.task import TaskSource
from tests.effort import examples
from tests.learners.tiny_parts import make_table, make_turn, scorer_of, tiny_policy

pytestmark = pytest.mark.medium

OK, FAILED, CUT = StopReason.TERMINATED, StopReason.SIMULATOR_ERROR, StopReason.MAX_TURNS


@st.composite
def configs(draw: st.DrawFn) -> LearnerConfig:
    """Any estimator with its keys, except those that need the model."""
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
    found = credit_group(table, True, credit_of=config.credit_of, masks_truncated=masks)
    usable = [index for index, reason in enumerate(found.drop_reasons) if not reason]
    if len(usable) < 2:
        assert found.group_drop_reason == "too_few"
        return
    samples = samples_from_table(table, advantages=gym_advantages(table, config.credit_of))
    if masks:
        samples, _ = without_truncated(samples, tables=[table])
    earned = {tuple(turn.reward for turn in group[index][0]) for index in usable}
    differ = len(earned) > 1 or not ADVANTAGES[config.advantage.type].spreads
    teaches = differ and any(sample.advantages.any() for sample in samples)
    assert (found.group_drop_reason == "flat") != teaches


@settings(deadline=None, max_examples=100)
@given(config=configs(), group=st.lists(trajectories(), min_size=2, max_size=4))
def test_the_learner_uses_the_rollout_actors_advantages_bit_for_bit(
    config: LearnerConfig, group: list[tuple[list[Turn], StopReason]]
):
    table = make_table(group)
    credited = credit_group(table, True, credit_of=config.credit_of).table
    scorer = scorer_of(tiny_policy())
    found, expected = (
        samples_of_step([one], config=config, renderer=None, scorer=scorer)[2][0].advantages
        for one in (credited, table)
    )
    assert credited[TURN_ADVANTAGE.name].null_count == 0
    assert found.tobytes() == expected.tobytes()


def test_only_groups_to_train_get_the_column():
    table = group_of([[0.0], [1.0]])
    assert credit_group(table, False, credit_of=LearnerConfig().credit_of).table is table


def group_of(
    rewards: Sequence[Sequence[float]],
    *,
    lengths: Sequence[Sequence[int]] | None = None,
    told: Sequence[Sequence[str]] | None = None,
    gym: str = "function",
) -> pa.Table:
    """A group's table with these turn rewards; each turn has a token and is told a fact of its own index."""
    lengths = lengths or [[1] * len(row) for row in rewards]
    told = told or [[str(turn) for turn in range(len(row))] for row in rewards]
    turns = [
        [
            replace(make_turn([1, 2], [3] * length, reward=reward, forked=False), feedback=fact)
            for reward, length, fact in zip(*columns, strict=True)
        ]
        for columns in zip(rewards, lengths, told, strict=True)
    ]
    table = make_table([(own, OK) for own in turns])
    return table.set_column(table.schema.get_field_index("gym"), "gym", pa.array([gym] * table.num_rows))


def credited_by(table: pa.Table, **advantage: object) -> CreditedTable:
    config = LearnerConfig.model_validate({"advantage": advantage})
    return credit_group(table, True, credit_of=config.credit_of)


def flat(table: pa.Table, **advantage: object) -> bool:
    return credited_by(table, **advantage).group_drop_reason == "flat"


def test_equal_sums_are_flat_only_if_sums_are_compared():
    """One success after one turn, or after three."""
    group = group_of([[1.0], [0.0, 0.0, 1.0]])
    assert flat(group, trajectory_score="sum")
    assert not flat(group, trajectory_score="reward_to_go", gamma=0.5)
    assert not flat(group, type="turn_loo", gamma=0.5)


def test_different_sums_are_flat_if_only_the_best_turn_counts():
    group = group_of([[1.0, 0.0], [1.0, 1.0]])
    assert flat(group, trajectory_score="max")
    assert not flat(group, trajectory_score="sum")


def test_a_group_of_total_failures_is_flat_by_the_released_arithmetic():
    """Failures do not differ; one success does."""
    failures = group_of([[0.0], [0.0, 0.0]])
    released = {"type": "userrl_compat", "turn_credit": "reward_to_go"}
    assert flat(failures, **released)
    assert not flat(group_of([[0.0], [0.0, 1.0]]), **released)


def test_equal_trajectories_are_flat_despite_rounding():
    """Released arithmetic gives a score of 0.056 for eight times 0.7; the printed equation compares no
    scores."""
    group = group_of([[0.7, 0.7]] * 8)
    assert flat(group, type="userrl_compat", trajectory_score="sum")
    assert flat(group, type="userrl_printed", turn_credit="naive")


def test_states_are_compared_if_the_estimator_reads_them():
    """Equal outcomes; after the second state one trajectory earned at once, the other later."""
    group = group_of([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    apart = group_of([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], told=[["a", "b", "c"], ["d", "e", "f"]])
    gigpo = {"type": "gigpo", "trajectory_score": "sum", "gamma": 1.0}
    assert not flat(group, **gigpo)
    assert flat(apart, **gigpo)


def test_turns_without_a_token_have_no_gradient():
    """The first trajectory's only advantage other than zero is on a turn without tokens."""
    rewards = [[0.0, 1.0], [0.0, 0.0]]
    naive = {"trajectory_score": "sum", "turn_credit": "naive"}
    assert not flat(group_of(rewards, lengths=[[2, 3], [1, 1]]), **naive)
    assert flat(group_of(rewards, lengths=[[2, 0], [1, 1]]), **naive)


def test_each_gym_is_asked_by_its_own_rule():
    own = SpreadConfig(trajectory_score="last")
    config = LearnerConfig(advantage=SpreadConfig(trajectory_score="sum"), by_gym={"tau": own})
    rewards = [[0.0, 1.0], [1.0, 1.0]]
    reasons = [
        credit_group(group_of(rewards, gym=gym), True, credit_of=config.credit_of).group_drop_reason
        for gym in ("tau", "travel")
    ]
    assert reasons == ["flat", ""]


@pytest.mark.parametrize("advantage", [name for name, entry in ADVANTAGES.items() if entry.asks_critic])
def test_advantages_that_need_the_model_are_left_to_the_learner_and_never_flat(advantage: str):
    found = credited_by(group_of([[0.0], [0.0]]), type=advantage)
    assert found.group_drop_reason == ""
    assert found.table[TURN_ADVANTAGE.name].null_count == found.table.num_rows


def test_a_group_that_gains_are_still_added_to_is_never_flat():
    group, credit_of = group_of([[0.0], [0.0]]), LearnerConfig().credit_of
    assert credit_group(group, True, credit_of=credit_of, has_gains=True).group_drop_reason == ""


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
    """For any share of flat groups: orders are issued for all free slots, and their groups arrive one by
    one."""
    sizes = BufferSizes(
        group_size=2, groups_per_step=groups_per_step, max_off_policy_steps=max_off_policy_steps, seed=7
    )
    source = TaskSource({"function": 1.0}, split="train", seed=7, difficulty=0)
    buffer = Buffer(sizes, source=source)
    open_orders = [order for _ in range(sizes.num_slots) if (order := buffer.issue())]
    assert (len(open_orders), buffer.issue()) == (sizes.num_slots, None)
    version = num_trained = num_flat = 0
    for rewards in groups:
        order = open_orders.pop(0)
        credited = credit_group(group_of(rewards), True, credit_of=config.credit_of)
        is_flat = credited.group_drop_reason == "flat"
        summary = replace(summarize(order, credited, duration_s=0.0), oldest_version=version)
        buffer.put(order, summary=summary, payload=None)
        refills = [order for _ in range(3) if (order := buffer.issue())]
        assert len(refills) == is_flat, "only a flat group's slot is refilled at once"
        num_flat += is_flat
        if (step := buffer.take(groups_per_step, policy_version=version)) is not None:
            assert len(step) == groups_per_step
            assert not any(group.summary.group_drop_reason for group in step)
            ids = [group.order.group_id for group in step]
            buffer.mark_trained(ids)
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


def test_a_state_is_the_facts_told_so_far_in_any_order():
    assert state_keys(["x", "y", "z"]) == [set(), {"x"}, {"x", "y"}]
    assert state_keys(["y", "x", "x", "z"])[2:] == [{"x", "y"}, {"x", "y"}]
    assert state_keys(["", "x", ""]) == [set(), set(), {"x"}]
    assert state_keys([]) == []
