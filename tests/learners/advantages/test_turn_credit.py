"""Scores and credits of one trajectory by hand; the released arithmetic against its published numbers."""

import math

import numpy as np
import pytest

from learners.advantages.turn_credit import (
    CREDITS,
    SCORES,
    spread,
    userrl_compat,
    userrl_credits,
    userrl_score,
)

EXAMPLE = [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0]]


def compat(
    rows: list[list[float]], *, score: str, credit: str, lengths: list[list[int]] | None = None
) -> list[np.ndarray]:
    return userrl_compat(
        [np.array(row) for row in rows],
        num_tokens=[np.array(n, int) for n in lengths or [[1] * len(row) for row in rows]],
        trajectory_score=score,
        turn_credit=credit,
        gamma=0.8,
    )


@pytest.mark.parametrize(
    ("name", "expected"), [("sum", 1.5), ("mean", 0.5), ("reward_to_go", 1.125), ("max", 1.0), ("last", 0.5)]
)
def test_scores_by_hand(name: str, expected: float):
    assert SCORES[name](np.array([1.0, 0.0, 0.5]), 0.5) == pytest.approx(expected)


@pytest.mark.parametrize("name", SCORES)
def test_a_trajectory_without_turns_scores_zero(name: str):
    assert SCORES[name](np.zeros(0), 0.9) == 0.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("naive", [0.0, 1.0, 0.5]),
        ("equalized", [1.0, 1.0, 1.0]),
        ("reward_to_go", [0.625, 1.25, 0.5]),
        ("exponential", [0.5, 1.0, 0.5 + 0.5 / (1 + math.exp(-1))]),
    ],
)
def test_credits_by_hand(name: str, expected: list[float]):
    """At 1/2 the map is 0.5 + 0.5 (1 - e^-1) / (1 - e^-2) = 0.5 + 0.5 / (1 + e^-1)."""
    assert CREDITS[name](np.array([0.0, 1.0, 0.5]), 0.5) == pytest.approx(expected)


@pytest.mark.parametrize("name", CREDITS)
def test_a_trajectory_without_turns_has_no_credits(name: str):
    assert CREDITS[name](np.zeros(0), 0.9).shape == (0,)


def test_our_exponential_credit_stays_in_its_range():
    assert CREDITS["exponential"](np.array([-1.0, 2.0]), 1.0).tolist() == [0.5, 1.0]


def test_spread_keeps_the_mean_over_tokens_that_have_credit():
    """Credits 0, 1, 3 on 5, 2, 2 tokens: N = 4, sum = 8, so the weights are 0, 1/2, 3/2."""
    lengths = np.array([5, 2, 2])
    values = spread(2.0, np.array([0.0, 1.0, 3.0]), num_tokens=lengths)
    assert values.tolist() == [0.0, 1.0, 3.0]
    assert (values @ lengths) / 4 == 2.0


def test_spread_of_equal_credits_is_the_advantage_to_the_bit():
    assert spread(0.3, np.full(3, 0.1), num_tokens=np.array([3, 7, 0])).tolist() == [0.3] * 3


def test_spread_of_no_credit_is_zero():
    assert spread(2.0, np.zeros(2), num_tokens=np.array([1, 1])).tolist() == [0.0, 0.0]
    assert spread(2.0, np.array([1.0, -1.0]), num_tokens=np.array([3, 3])).tolist() == [0.0, 0.0]
    almost = np.array([0.1, 0.2, -0.1 - 0.2 - 1e-16])  # a sum that is only rounding
    assert spread(2.0, almost, num_tokens=np.ones(3, int)).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("credit", "score", "expected"),
    [
        ("equalized", "sum", [[0.50] * 3, [-0.83] * 3, [-0.83] * 4, [1.17] * 2]),
        ("reward_to_go", "reward_to_go", [[0.52, 0.65, 0.82], [0] * 3, [0] * 4, [0.93, 1.16]]),
        ("exponential", "reward_to_go", [[0.50, 0.50, 1.00], [-0.86] * 3, [-0.86] * 4, [0.70, 1.39]]),
    ],
)
def test_compat_gives_what_the_released_code_gives(credit: str, score: str, expected: list[list[float]]):
    """By hand for the middle one: scores 0.64, 0, 0, 0.8 have mean 0.36 and deviation sqrt(0.5312 / 3), so
    that z is 0.66541 first; credits 0.64, 0.8, 1 take 3 / 2.44 z of each: 0.5236, 0.6545, 0.8181."""
    rows = [np.round(row, 2).tolist() for row in compat(EXAMPLE, score=score, credit=credit)]
    assert rows == expected


def test_compat_gives_the_recorded_sign_inversion():
    group = [[0, 0, 0, 0.2, 0], [0] * 5, [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    first = compat([[float(r) for r in row] for row in group], score="reward_to_go", credit="reward_to_go")[0]
    assert np.round(first, 2).tolist() == [-0.43, -0.53, -0.66, -0.83, 0.0]


def test_the_released_sum_is_a_rounded_mean():
    assert userrl_score([0.0, 1.0], method="sum", gamma=0.8) == 0.5
    assert userrl_score([1.0, 1.0, 0, 0, 0, 0, 0, 0], method="sum", gamma=0.8) == 0.25
    assert userrl_score([0.0, 0.0, 1.0], method="sum", gamma=0.8) == 0.3333
    assert userrl_score([], method="sum", gamma=0.8) == 0.0


def test_the_released_reward_to_go_counts_from_the_first_turn():
    assert userrl_score([0.0, 0.0, 1.0], method="reward_to_go", gamma=0.8) == 0.8 * 0.8
    assert userrl_score([], method="reward_to_go", gamma=0.8) == 0.0


def test_the_released_exponential_map_is_rounded_and_not_clipped():
    credits = userrl_credits([0.0, 0.5, 1.0, -1.0, 2.0], method="exponential", gamma=0.8)
    assert credits == [0.5, 0.8655, 1.0, -3.1945, 1.0677]


def test_the_released_deviation_is_of_a_sample_and_has_an_epsilon():
    """Scores 1 and 0: deviation sqrt(1/2)."""
    high, low = compat([[1.0], [0.0]], score="sum", credit="equalized")
    assert high[0] == pytest.approx(0.5 / (0.5**0.5 + 1e-6), rel=1e-6)
    assert low[0] == -high[0]


def test_a_released_group_of_one_has_mean_zero_and_deviation_one():
    assert compat([[0.5, 0.5]], score="sum", credit="equalized")[0] == pytest.approx([0.5, 0.5], rel=2e-6)


def test_the_release_has_neither_naive_credit_nor_other_scores():
    with pytest.raises(ValueError, match="naive: the release knows three"):
        compat(EXAMPLE, score="sum", credit="naive")
    with pytest.raises(ValueError, match="max: the release knows two"):
        compat(EXAMPLE, score="max", credit="equalized")
