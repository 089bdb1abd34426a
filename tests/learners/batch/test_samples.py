"""Training samples from tables: token ids, loss masks, forks, and trajectories that are left out."""

import numpy as np
import pyarrow as pa
import pytest

from actors.trajectory import StopReason
from learners.advantages.config import SpreadConfig
from learners.advantages.estimators import CreditRule
from learners.advantages.group_advantages import gym_advantages, row_advantages
from learners.batch.samples import (
    TrainingSample,
    samples_from_table,
)
from learners.config import LearnerConfig
from tests.learners.tiny_parts import loss_mask, make_table, make_turn

RULE = CreditRule(advantage="grpo", trajectory_score="sum", gamma=1.0)
DONE = StopReason.TERMINATED


def samples_of(table) -> list[TrainingSample]:
    return samples_from_table(table, advantages=row_advantages(table, RULE))


def test_a_trajectory_is_its_turns_end_to_end():
    good = [
        make_turn([1, 2, 3], [4, 5], reward=0.0, forked=True, version=6),
        make_turn([7], [8], reward=1.0, forked=False, version=7),
    ]
    bad = [make_turn([1, 2, 3], [9], reward=0.0, forked=True)]
    first, second = samples_of(make_table([(good, DONE), (bad, DONE)], group_id=5))
    assert (first.group_id, first.trajectory, second.trajectory) == (5, 0, 1)
    assert first.token_ids.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert loss_mask(first).tolist() == [False, False, False, True, True, False, True]
    assert np.allclose(first.behavior_logprobs, [-0.5, -0.6, -0.5])
    assert first.policy_versions.tolist() == [6, 6, 7]
    assert first.turns.tolist() == [0, 1]
    assert (first.turn_starts.tolist(), first.turn_lengths.tolist()) == ([3, 6], [2, 1])
    assert (first.advantages.tolist(), second.advantages.tolist()) == ([1, 1], [-1])
    assert (first.num_tokens, first.num_loss_tokens) == (7, 3)


def test_a_fork_starts_a_new_sample_with_the_same_advantage():
    forked = [
        make_turn([1], [2], reward=0.0, forked=True),
        make_turn([1, 3], [4], reward=1.0, forked=True),
        make_turn([5], [6], reward=0.0, forked=False),
    ]
    other = [make_turn([1], [2], reward=0.0, forked=True)]
    samples = samples_of(make_table([(forked, DONE), (other, DONE)]))
    assert [sample.token_ids.tolist() for sample in samples] == [[1, 2], [1, 3, 4, 5, 6], [1, 2]]
    assert [sample.trajectory for sample in samples] == [0, 0, 1]
    assert (samples[1].turns.tolist(), samples[1].advantages.tolist()) == ([1, 2], [1, 1])


def test_failed_and_unscored_trajectories_give_no_sample_and_change_no_other_advantage():
    def turns(reward: float):
        return [
            make_turn([1], [2], reward=reward, forked=True),
            make_turn([3], [4], reward=0.0, forked=False),
        ]

    table = make_table(
        [
            (turns(1.0), DONE),
            (turns(1.0), StopReason.SIMULATOR_ERROR),
            ([], StopReason.ENGINE_ERROR),
            (turns(float("inf")), DONE),
            (turns(0.0), DONE),
        ]
    )
    samples = samples_of(table)
    assert [sample.trajectory for sample in samples] == [0, 4]
    assert [sample.advantages.tolist() for sample in samples] == [[1, 1], [-1, -1]]


def test_a_sample_without_completion_tokens_is_left_out():
    empty = [make_turn([1, 2], [], reward=1.0, forked=True)]
    other = [make_turn([1], [2], reward=0.0, forked=True)]
    assert [s.trajectory for s in samples_of(make_table([(empty, DONE), (other, DONE)]))] == [1]


def test_a_slice_of_a_table_reads_its_own_rows():
    table = make_table([([make_turn([i], [i + 10], reward=i, forked=True)], DONE) for i in range(4)])
    samples = samples_from_table(table.slice(2), advantages=np.ones(2))
    assert [sample.token_ids.tolist() for sample in samples] == [[2, 12], [3, 13]]


def test_nothing_predicts_a_first_token():
    turns = [make_turn([], [5, 6], reward=0.0, forked=True)]
    (sample,) = samples_from_table(make_table([(turns, DONE)]), advantages=np.ones(1))
    assert loss_mask(sample).tolist() == [False, True]


def walked(table: pa.Table, advantages: list[float]) -> list[tuple[list[int], list[tuple]]]:
    """Each sample's ids, and (place, logprob, version, turn, advantage) of its loss tokens: a walk from token
    to token."""
    samples: list[tuple[list[int], list[tuple]]] = []
    last = None
    for row, advantage in zip(table.to_pylist(), advantages, strict=True):
        if row["forked"] or row["trajectory"] != last:
            samples.append(([], []))
        last = row["trajectory"]
        ids, said = samples[-1]
        ids += row["context_ids"]
        columns = (row["completion_ids"], row["behavior_logprobs"], row["policy_versions"])
        for token, logprob, version in zip(*columns, strict=True):
            if ids:  # nothing predicts a first token
                said.append((len(ids), logprob, version, row["turn"], advantage))
            ids.append(token)
    return [sample for sample in samples if sample[1]]


@pytest.mark.parametrize("seed", range(20))
def test_samples_equal_those_of_a_token_by_token_reference(seed: int):
    """Forks, silent turns, turns without context, and tables in chunks of two groups."""
    rng = np.random.default_rng(seed)

    def a_turn(index: int):
        num_context, num_said = (int(rng.integers(0, 5)) for _ in range(2))
        context, said = (rng.integers(0, 40, num).tolist() for num in (num_context, num_said))
        forked = index == 0 or bool(rng.random() < 0.3)
        return make_turn(context, said, reward=0.0, forked=forked, version=int(rng.integers(9)))

    tables = [
        make_table(
            [([a_turn(index) for index in range(rng.integers(1, 5))], DONE) for _ in range(3)], group_id=g
        )
        for g in range(2)
    ]
    advantages = [rng.normal(size=table.num_rows).astype(np.float32) for table in tables]
    samples = samples_from_table(pa.concat_tables(tables), advantages=np.concatenate(advantages))
    expected = [
        sample
        for table, own in zip(tables, advantages, strict=True)
        for sample in walked(table, own.tolist())
    ]
    for sample, (ids, said) in zip(samples, expected, strict=True):
        assert sample.token_ids.tolist() == ids
        of = np.repeat(np.arange(len(sample.turns)), sample.turn_lengths)
        columns = (
            np.flatnonzero(loss_mask(sample)),
            sample.behavior_logprobs,
            sample.policy_versions,
            sample.turns[of],
            sample.advantages[of],
        )
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == said


def test_a_table_without_rows_gives_no_sample():
    table = make_table([([make_turn([1], [2], reward=0.0, forked=True)], DONE)])
    assert samples_from_table(table.slice(1), advantages=np.zeros(0)) == []


def test_credit_is_spread_over_tokens_not_turns():
    """Scores 5/4 and 1/4 give 1/2 and -1/2. Credits 0, 1, 1/4 lie on 3, 1, 2 tokens: three have credit, and
    the sum is 3/2, so that the weights are 0, 2, 1/2."""
    turns = [
        make_turn([1], [2, 3, 4], reward=0.0, forked=True),
        make_turn([5], [6], reward=1.0, forked=False),
        make_turn([5], [7, 8], reward=0.25, forked=False),
    ]
    other = [make_turn([1], [2], reward=0.25, forked=True)]
    table = make_table([(turns, DONE), (other, DONE)])
    rule = CreditRule(advantage="dr_grpo", trajectory_score="sum", turn_credit="naive", gamma=1.0)
    assert row_advantages(table, rule).tolist() == [0.0, 1.0, 0.25, -0.5]


def test_gigpo_takes_its_states_from_the_table():
    """No feedback in any turn: one state. Rewards-to-go 1, 1, 0, 0 give 1, 1, -1, -1, as do the outcomes."""
    good, bad = (
        [make_turn([1], [2], reward=0.0, forked=True), make_turn([3], [4], reward=reward, forked=False)]
        for reward in (1.0, 0.0)
    )
    table = make_table([(good, DONE), (bad, DONE)])
    rule = CreditRule(advantage="gigpo", trajectory_score="sum", gamma=1.0)
    assert row_advantages(table, rule).tolist() == [2.0, 2.0, -2.0, -2.0]


def test_a_groups_gym_decides_its_credit():
    """By the sum both are equal; by the last turn they are 0 and 1; discounted by 1/2 they are 1 and 1/2."""
    early = [make_turn([1], [2], reward=1.0, forked=True), make_turn([3], [4], reward=0.0, forked=False)]
    late = [make_turn([1], [2], reward=0.0, forked=True), make_turn([3], [4], reward=1.0, forked=False)]
    table = make_table([(early, DONE), (late, DONE)])
    own = SpreadConfig(type="dr_grpo", trajectory_score="last")
    by_gym = LearnerConfig(advantage=SpreadConfig(trajectory_score="sum"), by_gym={"function": own})
    assert gym_advantages(table, by_gym.credit_of).tolist() == [-0.5, -0.5, 0.5, 0.5]
    others = LearnerConfig(advantage=SpreadConfig(trajectory_score="sum"), by_gym={"tau": own})
    assert gym_advantages(table, others.credit_of).tolist() == [0.0] * 4
    discounted = LearnerConfig(advantage=SpreadConfig(gamma=0.5))
    assert gym_advantages(table, discounted.credit_of).tolist() == [1.0, 1.0, -1.0, -1.0]
