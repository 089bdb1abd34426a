"""Samples: token ids as sampled, masks, forks, and what is left out."""

import numpy as np

from actors.trajectory import StopReason
from learners.advantage import make_estimator
from learners.samples import TrainingSample, row_advantages, samples_from_table
from tests.learners.tiny import make_table, make_turn

ESTIMATOR = make_estimator("grpo", trajectory_score="sum", gamma=1.0)
DONE = StopReason.TERMINATED


def samples_of(table) -> list[TrainingSample]:
    return samples_from_table(table, advantages=row_advantages(table, ESTIMATOR))


def test_a_trajectory_is_its_turns_end_to_end():
    good = [
        make_turn([1, 2, 3], [4, 5], reward=0.0, forked=True, version=6),
        make_turn([7], [8], reward=1.0, forked=False, version=7),
    ]
    bad = [make_turn([1, 2, 3], [9], reward=0.0, forked=True)]
    first, second = samples_of(make_table([(good, DONE), (bad, DONE)], group_id=5))
    assert (first.group_id, first.trajectory, second.trajectory) == (5, 0, 1)
    assert first.token_ids.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert first.loss_mask.tolist() == [False, False, False, True, True, False, True]
    assert np.allclose(first.behavior_logprobs, [0, 0, 0, -0.5, -0.6, 0, -0.5])
    assert first.policy_versions.tolist() == [-1, -1, -1, 6, 6, -1, 7]
    assert first.advantages.tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert second.advantages.tolist() == [0, 0, 0, -1]
    assert (first.num_tokens, first.num_loss_tokens) == (7, 3)


def test_a_fork_begins_a_new_sample_with_the_same_advantage():
    forked = [
        make_turn([1], [2], reward=0.0, forked=True),
        make_turn([1, 3], [4], reward=1.0, forked=True),
        make_turn([5], [6], reward=0.0, forked=False),
    ]
    other = [make_turn([1], [2], reward=0.0, forked=True)]
    samples = samples_of(make_table([(forked, DONE), (other, DONE)]))
    assert [sample.token_ids.tolist() for sample in samples] == [[1, 2], [1, 3, 4, 5, 6], [1, 2]]
    assert [sample.trajectory for sample in samples] == [0, 0, 1]
    assert samples[1].advantages.tolist() == [0, 0, 1, 0, 1]


def test_failures_and_unscored_trajectories_give_no_sample_and_move_no_advantage():
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
    assert [float(sample.advantages.max()) for sample in samples] == [1.0, 0.0]
    assert samples[1].advantages.tolist() == [0, -1, 0, -1]


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
    assert sample.loss_mask.tolist() == [False, True]
