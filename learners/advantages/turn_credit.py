"""Credit within one trajectory: reduces its turn rewards to one score, and spreads an advantage over its
turns by weights. Pure NumPy.

The published scheme is UserRL's (arXiv 2509.19736 §4.2 to §4.4): score x credit, any pair. The functions
`userrl_...` compute what its released code does, which differs; they reproduce published numbers.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

TrajectoryScore = Callable[[Float[ndarray, "num_turns"], float], float]
"""(turn rewards, gamma) to the score that is compared within a group."""
TurnCredit = Callable[[Float[ndarray, "num_turns"], float], Float[ndarray, "num_turns"]]
"""(turn rewards, gamma) to each turn's weight."""

EXPONENT = 2.0
"""k of the exponential mapping (UserRL, Table 6)."""
ROUNDING = 1e-12
"""Relative size of what rounding leaves of credits that cancel."""
USERRL_EPSILON = 1e-6
"""The released code adds it to a group's standard deviation."""
USERRL_SCORES = ("sum", "reward_to_go")
USERRL_CREDITS = ("equalized", "reward_to_go", "exponential")


def total_reward(rewards: Float[ndarray, "num_turns"]) -> float:
    """The sum of a trajectory's turn rewards: UserRL §4.3, R = sum over t of r_t."""
    return float(rewards.sum())


def mean_reward(rewards: Float[ndarray, "num_turns"]) -> float:
    """The mean over turns, 0 without turns: of two equal sums it prefers that of fewer turns."""
    return float(rewards.mean()) if len(rewards) else 0.0


def discounted_reward(rewards: Float[ndarray, "num_turns"], *, gamma: float) -> float:
    """Reward-to-go of the first turn: sum over t of gamma^t r_t (UserRL, arXiv 2509.19736).

    Example: rewards (0, 0, 1) with gamma 0.5 give 0.25.
    """
    return float(rewards @ _discounts(gamma, len(rewards)))


@lru_cache(maxsize=1024)
def _discounts(gamma: float, num_turns: int) -> Float[ndarray, "num_turns"]:
    """gamma^t of each turn. Cached: it takes most of the time of a short sum."""
    discounts = gamma ** np.arange(num_turns)
    discounts.flags.writeable = False
    return discounts


def max_reward(rewards: Float[ndarray, "num_turns"]) -> float:
    """The best single turn, 0 without turns."""
    return float(rewards.max()) if len(rewards) else 0.0


def last_reward(rewards: Float[ndarray, "num_turns"]) -> float:
    """The last turn's reward, 0 without turns: for gyms with one reward, at the end."""
    return float(rewards[-1]) if len(rewards) else 0.0


def naive_credit(rewards: Float[ndarray, "num_turns"]) -> Float[ndarray, "num_turns"]:
    """Each turn's own reward: UserRL §4.2, Naive."""
    return np.asarray(rewards, float)


def equalized_credit(rewards: Float[ndarray, "num_turns"]) -> Float[ndarray, "num_turns"]:
    """1 on every turn: UserRL §4.2, Equalized. Every turn gets the trajectory's advantage."""
    return np.ones(len(rewards))


def reward_to_go(rewards: Float[ndarray, "num_turns"], *, gamma: float) -> Float[ndarray, "num_turns"]:
    """Reward-to-go: sum over j >= t of gamma^(j-t) r_j (UserRL §4.2, R2G).

    Example: rewards (0, 0, 1) with gamma 0.5 give (0.25, 0.5, 1).
    """
    to_go = np.zeros(len(rewards))
    following = 0.0
    for turn in reversed(range(len(rewards))):
        following = rewards[turn] + gamma * following
        to_go[turn] = following
    return to_go


def exponential_credit(rewards: Float[ndarray, "num_turns"]) -> Float[ndarray, "num_turns"]:
    """0.5 + 0.5 (1 - e^(-k r)) / (1 - e^(-k)) with k = 2: UserRL §4.2, Exponential Mapping, onto [0.5, 1].

    The equation is stated for rewards in [0, 1]; others are clipped to it.
    """
    inside = np.clip(rewards, 0.0, 1.0)
    return 0.5 + 0.5 * (1 - np.exp(-EXPONENT * inside)) / (1 - math.exp(-EXPONENT))


def spread(
    advantage: float, credits: Float[ndarray, "num_turns"], *, num_tokens: Int[ndarray, "num_turns"]
) -> Float[ndarray, "num_turns"]:
    """A trajectory's advantage over its turns by weight: A c_t N / sum of c over tokens, N the tokens whose
    credit is not zero, whose mean is `advantage` (UserRL's release, `core_algos.py`).

    Credits that sum to zero, up to rounding, give zeros. Equal credits give `advantage` itself.
    """
    if len(credits) and credits[0] != 0 and (credits == credits[0]).all():
        return np.full(len(credits), advantage)
    total = float(credits @ num_tokens)
    if abs(total) <= ROUNDING * float(np.abs(credits) @ num_tokens):
        return np.zeros(len(credits))
    return advantage * (credits * float(num_tokens[credits != 0].sum()) / total)


def userrl_score(rewards: Sequence[float], *, method: str, gamma: float) -> float:
    """The release's `trajectory_score`: its "Sum" is the mean over turns, rounded to 4 digits; its "R2G" is
    the reward-to-go of the first turn. 0 without turns."""
    if method == "reward_to_go":
        return float(next(iter(_backward(rewards, gamma=gamma)), 0.0))
    if method == "sum":
        return round(sum(rewards) / len(rewards), 4) if len(rewards) else 0.0
    raise ValueError(f"trajectory_score={method}: the release knows two: take 'sum' or 'reward_to_go'")


def userrl_credits(rewards: Sequence[float], *, method: str, gamma: float) -> list[float]:
    """The release's `turn_credits`: the exponential mapping is rounded to 4 digits and not clipped, so that
    -1 gives -3.1945 and 2 gives 1.0677; there is no naive credit."""
    if method == "equalized":
        return [1.0] * len(rewards)
    if method == "reward_to_go":
        return _backward(rewards, gamma=gamma)
    if method == "exponential":
        scale = 1 - math.exp(-EXPONENT)
        return [round(0.5 + 0.5 * ((1 - _exp(-EXPONENT * reward)) / scale), 4) for reward in rewards]
    raise ValueError(
        f"turn_credit={method}: the release knows three: take 'equalized', 'reward_to_go' or 'exponential'"
    )


def userrl_compat(
    rewards: Sequence[Float[ndarray, "num_turns"]],  # [group_size]
    *,
    num_tokens: Sequence[Int[ndarray, "num_turns"]],  # [group_size]
    trajectory_score: str,
    turn_credit: str,
    gamma: float,
) -> list[Float[ndarray, "num_turns"]]:  # [group_size]
    """The advantages of UserRL's released `compute_grpo_multiturn_advantage`, in its float32.

    z_i = (R_i - mean R) / (std R + 1e-6), the deviation divided by n - 1; a group of one has mean 0 and
    deviation 1. Then A_t = z_i c_t N_nonzero / sum of c over tokens, and zeros where that sum is zero.

    In torch, operation by operation, so that float32 mean, deviation and sum equal the release's for groups
    of any size. Equal credits agree to the last bit. Unequal ones do if the policy's tokens are adjacent;
    zeros between them, for user tokens and padding, change the order of the sum, and so its last bits."""
    import torch  # here, so that reading a recipe does not import it

    plain = [[float(reward) for reward in turns] for turns in rewards]
    tensor = partial(torch.tensor, dtype=torch.float32)
    scores = tensor([userrl_score(turns, method=trajectory_score, gamma=gamma) for turns in plain])
    mean, std = (scores.mean(), scores.std()) if len(scores) > 1 else (tensor(0.0), tensor(1.0))
    advantages = []
    for turns, score, lengths in zip(plain, scores, num_tokens, strict=True):
        credits = tensor(userrl_credits(turns, method=turn_credit, gamma=gamma))
        of_tokens = credits.repeat_interleave(torch.as_tensor(np.asarray(lengths, np.int64)))
        total = of_tokens.sum()
        factor = (score - mean) / (std + USERRL_EPSILON) * of_tokens.count_nonzero() / total
        advantages.append((credits * (factor if total != 0 else 0.0)).numpy().astype(float))
    return advantages


def _exp(power: float) -> float:
    """e^power; NaN on overflow, so that the trajectory is dropped instead of ending the run."""
    try:
        return math.exp(power)
    except OverflowError:
        return math.nan


def _backward(rewards: Sequence[float], *, gamma: float) -> list[float]:
    """Reward-to-go of each turn, in the release's order of operations."""
    to_go: list[float] = []
    for reward in reversed(rewards):
        to_go.append(reward + gamma * to_go[-1] if to_go else reward)
    return to_go[::-1]


SCORES: dict[str, TrajectoryScore] = {
    "sum": lambda rewards, gamma: total_reward(rewards),
    "mean": lambda rewards, gamma: mean_reward(rewards),
    "reward_to_go": lambda rewards, gamma: discounted_reward(rewards, gamma=gamma),
    "max": lambda rewards, gamma: max_reward(rewards),
    "last": lambda rewards, gamma: last_reward(rewards),
}
CREDITS: dict[str, TurnCredit] = {
    "naive": lambda rewards, gamma: naive_credit(rewards),
    "equalized": lambda rewards, gamma: equalized_credit(rewards),
    "reward_to_go": lambda rewards, gamma: reward_to_go(rewards, gamma=gamma),
    "exponential": lambda rewards, gamma: exponential_credit(rewards),
}
