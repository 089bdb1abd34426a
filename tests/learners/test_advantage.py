"""Advantages against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.advantage import discounted_reward, group_relative, make_estimator, total_reward

NAN = float("nan")


def ragged(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


def test_score_is_the_true_sum():
    assert total_reward(np.array([0.25, 0.0, 0.5])) == 0.75


def test_reward_to_go_discounts_from_the_first_turn():
    assert discounted_reward(np.array([0.0, 0.0, 1.0]), gamma=0.5) == 0.25
    assert discounted_reward(np.array([1.0, 1.0, 1.0]), gamma=0.5) == 1.75


def test_grpo_divides_by_the_population_standard_deviation():
    """Scores 1, 0, 0, 0: mean 1/4, variance 3/16, so (3/4) / (sqrt(3)/4) = sqrt(3) and -1/sqrt(3)."""
    advantages = group_relative(np.array([1.0, 0.0, 0.0, 0.0]), divide_by_std=True)
    assert advantages == pytest.approx([3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)])


def test_dr_grpo_only_subtracts_the_mean():
    assert group_relative(np.array([1.0, 0.0, 0.0, 0.0]), divide_by_std=False).tolist() == [
        0.75,
        -0.25,
        -0.25,
        -0.25,
    ]


@pytest.mark.parametrize("scores", [[0.3, 0.3, 0.3], [0.7]])
def test_a_group_with_nothing_to_compare_gives_zeros(scores: list[float]):
    assert group_relative(np.array(scores), divide_by_std=True).tolist() == [0.0] * len(scores)


def test_failed_members_count_neither_for_mean_nor_deviation():
    """Without the failed one the scores are 1 and 0: mean 1/2, deviation 1/2."""
    advantages = group_relative(np.array([1.0, NAN, 0.0]), divide_by_std=True)
    assert np.array_equal(advantages, [1.0, NAN, -1.0], equal_nan=True)


def test_a_group_that_failed_whole_has_no_advantage():
    assert np.isnan(group_relative(np.array([NAN, NAN]), divide_by_std=True)).all()


def test_each_turn_gets_its_trajectorys_advantage():
    estimator = make_estimator("grpo", trajectory_score="sum", gamma=1.0)
    advantages = estimator(ragged([0.0, 1.0], [0.0, 0.0, 0.0]))
    assert [row.tolist() for row in advantages] == [[1.0, 1.0], [-1.0, -1.0, -1.0]]


def test_reward_to_go_prefers_the_quicker_success():
    """Scores 1 and 0.5 at gamma 0.5: mean 3/4, deviation 1/4."""
    estimator = make_estimator("grpo", trajectory_score="reward_to_go", gamma=0.5)
    quick, slow = estimator(ragged([1.0], [0.0, 1.0]))
    assert quick.tolist() == [1.0]
    assert slow.tolist() == [-1.0, -1.0]


def test_one_failed_turn_fails_its_trajectory_alone():
    estimator = make_estimator("dr_grpo", trajectory_score="sum", gamma=1.0)
    advantages = estimator(ragged([1.0, NAN], [1.0], [0.0]))
    assert np.isnan(advantages[0]).all()
    assert [advantages[1].tolist(), advantages[2].tolist()] == [[0.5], [-0.5]]


@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=16))
def test_advantages_sum_to_zero_and_are_bounded(scores: list[float]):
    advantages = group_relative(np.array(scores), divide_by_std=True)
    assert abs(advantages.sum()) < 1e-6
    assert np.abs(advantages).max() <= (len(scores) - 1) ** 0.5 + 1e-9
