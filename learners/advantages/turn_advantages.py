"""Turn-level advantage estimators, for rewards that differ from turn to turn. Pure NumPy; rewards are finite.

Ragged in, ragged out: `rewards[i][t]` is turn t of trajectory i, and so is the advantage. A trajectory
without turns gives an empty row.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from learners.advantages.group_baseline import FLAT_STD, group_relative
from learners.advantages.turn_credit import reward_to_go

TurnRewards = Sequence[Float[ndarray, "num_turns"]]  # [group_size]
TurnAdvantages = list[Float[ndarray, "num_turns"]]  # [group_size]

OUTCOME_WEIGHT = 1.0
"""Weight of the outcome on the turns before the last, MT-GRPO's lambda."""
STATE_WEIGHT = 1.0
"""Weight of the comparison within a state, GiGPO's omega."""


def turn_mean_advantages(rewards: TurnRewards, *, gamma: float) -> TurnAdvantages:
    """A_t = G_t - mean of G_t over the trajectories that reached turn t; G_t = sum over j >= t of
    gamma^(j-t) r_j. REINFORCE with a baseline by time (Williams 1992), with the group's mean as the baseline.

    Signed and additive: a turn after which nothing was earned gets a negative advantage if its peers still
    earned. But its own G_t is part of the mean, which shrinks it by 1 - 1/n_t: late turns, which few
    trajectories reach, learn less, and a turn reached by a single trajectory learns nothing. If the policy
    decides how many turns there are, that biases the gradient: use `turn_loo_advantages`.
    """
    to_go, reached = _padded([reward_to_go(turns, gamma=gamma) for turns in rewards])
    baseline = to_go.sum(axis=0) / np.maximum(1, reached.sum(axis=0))
    return _ragged(np.where(_is_flat(to_go, reached), 0.0, to_go - baseline), reached)


def turn_loo_advantages(rewards: TurnRewards, *, gamma: float) -> TurnAdvantages:
    """A_t = G_t - mean of G_t over the *other* trajectories that reached turn t, 0 if none did
    (leave-one-out, RLOO, arXiv 2402.14740, per turn).

    Unbiased for any rule of how many turns there are: the baseline and its members depend on other
    trajectories only, so that E[grad log pi(a_t) b_t] = 0 for each turn. With gamma = 1 the expected gradient
    is that of the mean sum of rewards. Fewer than two trajectories give zeros.
    """
    if len(rewards) < 2:
        return [np.zeros(len(turns)) for turns in rewards]
    to_go, reached = _padded([reward_to_go(turns, gamma=gamma) for turns in rewards])
    num_others = reached.sum(axis=0) - 1
    baseline = np.where(num_others > 0, (to_go.sum(axis=0) - to_go) / np.maximum(1, num_others), 0.0)
    return _ragged(np.where(_is_flat(to_go, reached), 0.0, to_go - baseline), reached)


def mt_grpo_advantages(rewards: TurnRewards, *, outcomes: Float[ndarray, "group_size"]) -> TurnAdvantages:
    """A_t = z(r_t) + lambda z(outcome) before the last turn, z(outcome) on the last (MT-GRPO, arXiv
    2505.11821): z is GRPO's score, of a turn's reward among the group's turns of that index.

    The paper has two turns, the first with a reward of its own; its released code puts the weight on z(r_t)
    instead, and both are 1. A turn's reward is not compared with those of last turns.
    """
    last = group_relative(outcomes, divide_by_std=True)
    values, compared = _padded([turns[:-1] for turns in rewards])
    advantages = []
    relative = np.zeros_like(values)
    for turn in range(values.shape[1]):
        rows = compared[:, turn]
        relative[rows, turn] = group_relative(values[rows, turn], divide_by_std=True)
    for row, turns in enumerate(rewards):
        num_before = max(0, len(turns) - 1)
        before = relative[row, :num_before] + OUTCOME_WEIGHT * last[row]
        advantages.append(np.append(before, last[row])[: len(turns)])
    return advantages


def gigpo_advantages(
    rewards: TurnRewards,
    *,
    states: Sequence[Sequence[Hashable]],  # [group_size][num_turns]
    outcomes: Float[ndarray, "group_size"],
    gamma: float,
) -> TurnAdvantages:
    """A_t = z(outcome) + omega z(G_t among turns in the same state) (GiGPO, arXiv 2505.10978 eq. 3, 7, 8).

    `states[i][t]` is a key of what the policy saw before turn t; equal keys anywhere in the group are one
    state, also within one trajectory. A state that was seen once adds nothing. Both comparisons divide by the
    deviation, one of the paper's two norms.
    """
    if len(states) != len(rewards):
        raise ValueError(f"states of {len(states)} trajectories: gigpo needs those of all {len(rewards)}")
    episode = group_relative(outcomes, divide_by_std=True)
    to_go = [reward_to_go(turns, gamma=gamma) for turns in rewards]
    advantages = [np.full(len(turns), episode[row]) for row, turns in enumerate(rewards)]
    visits: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for row, (keys, turns) in enumerate(zip(states, rewards, strict=True)):
        for turn, (key, _) in enumerate(zip(keys, turns, strict=True)):
            visits[key].append((row, turn))
    for places in visits.values():
        relative = group_relative(np.array([to_go[row][turn] for row, turn in places]), divide_by_std=True)
        for (row, turn), value in zip(places, relative, strict=True):
            advantages[row][turn] += STATE_WEIGHT * value
    return advantages


def igpo_advantages(rewards: TurnRewards, *, gamma: float) -> TurnAdvantages:
    """A_t = sum over j >= t of gamma^(j-t) z(r_j), z among all turns of the group (IGPO, arXiv 2510.14967;
    its released code, mode "joint", gamma 1).

    For turn rewards with information gain: each turn before the last has a gain, and the last has the
    outcome. Turns differ within a trajectory, so that equal trajectories do not give zeros; fewer than two
    do."""
    if len(rewards) < 2:
        return [np.zeros(len(turns)) for turns in rewards]
    relative = group_relative(np.concatenate(rewards), divide_by_std=True)
    ends = np.cumsum([len(turns) for turns in rewards])
    return [reward_to_go(turns, gamma=gamma) for turns in np.split(relative, ends[:-1])]


def turn_gae(
    rewards: Float[ndarray, "num_turns"],
    *,
    values: Float[ndarray, "num_turns"],
    gamma: float,
    gae_lambda: float,
) -> Float[ndarray, "num_turns"]:
    """A_t = sum over l of (gamma lambda)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t (GAE, arXiv
    1506.02438 eq. 16), with a turn as one action (Turn-PPO, arXiv 2512.17008).

    `values[t]` is the critic's value before turn t; after the last turn it is 0.
    """
    following = np.append(values, 0.0)[1:]
    return reward_to_go(rewards + gamma * following - values, gamma=gamma * gae_lambda)


def _padded(
    rows: TurnRewards,
) -> tuple[Float[ndarray, "group_size max_turns"], Bool[ndarray, "group_size max_turns"]]:
    """Rows as one matrix padded with 0, and the mask of the rows' own entries."""
    lengths = np.array([len(row) for row in rows], int)
    reached = np.arange(lengths.max(initial=0)) < lengths[:, None]
    values = np.zeros(reached.shape)
    values[reached] = np.concatenate([*rows, np.zeros(0)])
    return values, reached


def _ragged(values: Float[ndarray, "group_size max_turns"], reached: ndarray) -> TurnAdvantages:
    return [row[mask] for row, mask in zip(values, reached, strict=True)]


def _is_flat(values: ndarray, reached: ndarray) -> Bool[ndarray, "max_turns"]:
    """Turns that several trajectories reached with the same value, up to rounding."""
    low = np.where(reached, values, np.inf).min(axis=0, initial=np.inf)
    high = np.where(reached, values, -np.inf).max(axis=0, initial=-np.inf)
    return (reached.sum(axis=0) > 1) & (high - low < FLAT_STD)
