"""Advantages: turn rewards of one group in, one number a turn out. Pure NumPy; knows no tokens.

An estimator is `(ragged rewards [group_size][num_turns]) -> ragged advantages [group_size][num_turns]`. A
trajectory with a non-finite reward failed: it is left out of the group's mean and deviation, and its
advantages are NaN.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy import ndarray

TurnRewards = Sequence[Float[ndarray, "num_turns"]]  # [group_size]
TurnAdvantages = list[Float[ndarray, "num_turns"]]  # [group_size]
Estimator = Callable[[TurnRewards], TurnAdvantages]

FLAT_STD = 1e-8
"""A group whose scores spread less than this has nothing to compare: every advantage is zero."""


def total_reward(rewards: Float[ndarray, "num_turns"]) -> float:
    """The sum of a trajectory's turn rewards."""
    return float(rewards.sum())


def discounted_reward(rewards: Float[ndarray, "num_turns"], *, gamma: float) -> float:
    """Reward-to-go of the first turn: sum over t of gamma^t r_t (UserRL, arXiv 2509.19736).

    Example: rewards (0, 0, 1) with gamma 0.5 give 0.25.
    """
    return float(rewards @ gamma ** np.arange(len(rewards)))


def group_relative(
    scores: Float[ndarray, "group_size"], *, divide_by_std: bool
) -> Float[ndarray, "group_size"]:
    """Each score against its group (GRPO, DeepSeekMath, arXiv 2402.03300 §4.1.2), NaN where the score is not
    finite.

    The standard deviation is the population's (divided by n), so that no advantage exceeds sqrt(n - 1).
    Without the division: Dr. GRPO, arXiv 2503.20783. Fewer than two scores, or equal ones, give zeros.
    """
    valid = np.isfinite(scores)
    if not valid.any():
        return np.full_like(scores, np.nan)
    centred = np.where(valid, scores, np.nan) - scores[valid].mean()
    std = scores[valid].std()
    if std < FLAT_STD:
        return np.where(valid, 0.0, np.nan)
    return centred / std if divide_by_std else centred


def equalized(score: float, num_turns: int) -> Float[ndarray, "num_turns"]:
    """The trajectory's advantage, on each of its turns alike."""
    return np.full(num_turns, score)


def group_advantages(
    rewards: TurnRewards, *, score: Callable[[ndarray], float], divide_by_std: bool
) -> TurnAdvantages:
    """Score each trajectory, compare within the group, spread over the turns."""
    scores = np.array([score(turns) for turns in rewards])
    advantages = group_relative(scores, divide_by_std=divide_by_std)
    return [equalized(float(a), len(turns)) for a, turns in zip(advantages, rewards, strict=True)]


def make_estimator(advantage: str, *, trajectory_score: str, gamma: float) -> Estimator:
    """The estimator that `LearnerConfig`'s names ask for."""
    score = SCORES[trajectory_score](gamma)
    return partial(group_advantages, score=score, divide_by_std=DIVIDES_BY_STD[advantage])


SCORES: dict[str, Callable[[float], Callable[[ndarray], float]]] = {
    "sum": lambda gamma: total_reward,
    "reward_to_go": lambda gamma: partial(discounted_reward, gamma=gamma),
}
DIVIDES_BY_STD: dict[str, bool] = {"grpo": True, "dr_grpo": False}
