"""Turn-level estimators by hand, and the expected gradient of a policy that chooses when to stop."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from learners.advantages.group_baseline import leave_one_out
from learners.advantages.turn_advantages import (
    TurnAdvantages,
    TurnRewards,
    gigpo_advantages,
    igpo_advantages,
    mt_grpo_advantages,
    turn_gae,
    turn_loo_advantages,
    turn_mean_advantages,
)


def ragged(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, float) for row in rows]


def lists(advantages: TurnAdvantages) -> list[list[float]]:
    return [row.tolist() for row in advantages]


def test_turn_mean_by_hand():
    """Rewards-to-go at gamma 1/2: (0.25, 0.5, 1), (1, 0), (0.5); means over the trajectories that reached the
    turn: 7/12, 1/4, 1."""
    advantages = turn_mean_advantages(ragged([0, 0, 1], [1, 0], [0.5]), gamma=0.5)
    assert advantages[0] == pytest.approx([-1 / 3, 0.25, 0.0])
    assert advantages[1] == pytest.approx([5 / 12, -0.25])
    assert advantages[2] == pytest.approx([-1 / 12])


def test_turn_loo_by_hand():
    """The same; means of the others: first turns 3/4, 3/8, 5/8, second turns 0, 1/2, third turn none."""
    advantages = turn_loo_advantages(ragged([0, 0, 1], [1, 0], [0.5]), gamma=0.5)
    assert lists(advantages) == [[-0.5, 0.5, 1.0], [0.625, -0.5], [-0.125]]


def test_rloo_by_hand():
    assert leave_one_out(np.array([1.0, 0.0, 0.5])) == pytest.approx([0.75, -0.75, 0.0])
    failed = leave_one_out(np.array([1.0, np.nan, 0.0]))
    assert np.array_equal(failed, [1.0, np.nan, -1.0], equal_nan=True)


def test_mt_grpo_by_hand():
    """Outcomes 2, 1 and 0 give z, 0 and -z, z = sqrt(3/2); first turns 0, 0.4 and 0.2 give -z, z and 0."""
    rewards, outcomes = ragged([0, 2], [0.4, 1], [0.2, 0]), np.array([2.0, 1.0, 0.0])
    advantages = mt_grpo_advantages(rewards, outcomes=outcomes)
    z = 1.5**0.5
    assert np.concatenate(advantages) == pytest.approx([0.0, z, z, 0.0, -z, -z])


def test_mt_grpo_compares_no_last_turn():
    """The second turn of the first is its last and that of the other is not: it has no peer, so 0."""
    advantages = mt_grpo_advantages(ragged([0, 1], [0, 0.3, 0]), outcomes=np.array([1.0, 0.0]))
    assert lists(advantages) == [[1.0, 1.0], [-1.0, -1.0, -1.0]]


def test_gigpo_by_hand():
    """State a has returns 1, 0; b is seen twice in one trajectory and once in the other: 1, 0, 0 (mean 1/3,
    deviation sqrt(2)/3); c once. Outcomes 1 and 0 give 1 and -1."""
    advantages = gigpo_advantages(
        ragged([0, 1], [0, 0, 0, 0]),
        states=[["a", "b"], ["a", "b", "b", "c"]],
        outcomes=np.array([1.0, 0.0]),
        gamma=1.0,
    )
    low = -1 - 0.5**0.5
    assert advantages[0] == pytest.approx([2.0, 1 + 2**0.5])
    assert advantages[1] == pytest.approx([-2.0, low, low, -1.0])


def test_gigpo_without_states_is_refused():
    with pytest.raises(ValueError, match="gigpo needs"):
        gigpo_advantages(ragged([1.0]), states=[], outcomes=np.array([1.0]), gamma=1.0)


def test_igpo_by_hand():
    """Turn rewards 0, 1, 0, 0 of the whole group: mean 1/4, deviation sqrt(3)/4, so 1 is sqrt(3) and 0 is
    -1/sqrt(3); then each turn adds half of what follows."""
    advantages = igpo_advantages(ragged([0, 1], [0, 0]), gamma=0.5)
    low, high = -(3**-0.5), 3**0.5
    assert advantages[0] == pytest.approx([low + high / 2, high])
    assert advantages[1] == pytest.approx([1.5 * low, low])


def test_igpo_compares_turns_within_equal_trajectories():
    """z is -1 and 1: the first turn gets the sum of both, the second its own."""
    assert lists(igpo_advantages(ragged([0, 1], [0, 1]), gamma=1.0)) == [[0.0, 1.0], [0.0, 1.0]]
    assert lists(igpo_advantages(ragged([0, 1]), gamma=1.0)) == [[0.0, 0.0]]
    assert lists(igpo_advantages(ragged([1, 1], [1]), gamma=1.0)) == [[0.0, 0.0], [0.0]]


def test_gae_by_hand():
    """Deltas: 0 + 0.5 * 0.6 - 0.2 = 0.1 and 1 - 0.6 = 0.4; the first adds 0.5 * 0.5 * 0.4."""
    rewards, values = np.array([0.0, 1.0]), np.array([0.2, 0.6])
    assert turn_gae(rewards, values=values, gamma=0.5, gae_lambda=0.5) == pytest.approx([0.2, 0.4])


def test_gae_at_lambda_one_is_reward_to_go_less_the_value():
    rewards, values = np.array([0.5, 0.0, 1.0]), np.array([0.3, 0.2, 0.9])
    assert turn_gae(rewards, values=values, gamma=1.0, gae_lambda=1.0) == pytest.approx([1.2, 0.8, 0.1])
    assert turn_gae(np.zeros(0), values=np.zeros(0), gamma=1.0, gae_lambda=1.0).shape == (0,)


STOP_AT = ragged([0.4], [0.0, 0.9], [0.0, 0.0, 0.2], [0.0, 0.0, 0.7])
"""The policy chooses go or stop: stop at turn 1, 2 or 3, or continue to the end."""
GO = (0.7, 0.4, 0.3)
"""Its probability of go at each turn."""
Construction = Callable[[TurnRewards], TurnAdvantages]


def paths() -> list[tuple[float, np.ndarray]]:
    """(probability, d log probability / d logit of go) of each trajectory; gradients turn by turn, ragged."""
    found, alive = [], 1.0
    for turn, go in enumerate(GO):
        found.append((alive * (1 - go), np.array([*(1 - g for g in GO[:turn]), -go])))
        alive *= go
    return [*found, (alive, np.array([1 - g for g in GO]))]


def expected_gradient(construction: Construction, *, group_size: int = 3) -> np.ndarray:
    """Mean over every possible group, weighted by its probability: no sampling, no noise."""
    gradient, choices = np.zeros(len(GO)), paths()
    for group in product(range(len(choices)), repeat=group_size):
        probability = np.prod([choices[path][0] for path in group])
        for path, advantages in zip(group, construction([STOP_AT[p] for p in group]), strict=True):
            slopes = choices[path][1]
            gradient[: len(slopes)] += probability * slopes * advantages / group_size
    return gradient


def true_gradient() -> np.ndarray:
    gradient = np.zeros(len(GO))
    for (probability, slopes), rewards in zip(paths(), STOP_AT, strict=True):
        gradient[: len(slopes)] += probability * slopes * rewards.sum()
    return gradient


def misdirection(gradient: np.ndarray) -> float:
    """Sine of the angle to the true gradient, which no learning rate corrects."""
    true = true_gradient()
    cosine = gradient @ true / np.linalg.norm(gradient) / np.linalg.norm(true)
    return float(np.sqrt(max(0.0, 1 - cosine**2)))


def test_turn_loo_is_unbiased_if_the_policy_chooses_when_to_stop():
    gradient = expected_gradient(lambda rewards: turn_loo_advantages(rewards, gamma=1.0))
    assert gradient == pytest.approx(true_gradient(), abs=1e-12)


def test_the_gradient_of_turn_mean_is_biased():
    """Each turn is shrunk by its own E[1 - 1/n_t]: later turns learn less."""
    gradient = expected_gradient(lambda rewards: turn_mean_advantages(rewards, gamma=1.0))
    shrunk = gradient / true_gradient()
    assert misdirection(gradient) > 0.15
    assert shrunk[0] == pytest.approx(2 / 3)
    assert shrunk[0] > 1.2 * shrunk[1] > 1.2 * shrunk[2]


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_turn_loo_is_unbiased_at_any_group_size(group_size: int):
    gradient = expected_gradient(
        lambda rewards: turn_loo_advantages(rewards, gamma=1.0), group_size=group_size
    )
    assert gradient == pytest.approx(true_gradient(), abs=1e-12)
