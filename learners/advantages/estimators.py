"""Advantage estimators (GRPO, RLOO, turn-level ones): turn rewards of one group in, one advantage per turn
out. Pure NumPy; of the tokens only their number per turn is known.

`CreditRule.advantages` maps ragged rewards [group_size][num_turns] to ragged advantages of the same shape. A
trajectory with a non-finite reward failed: it is left out of every comparison within the group, and its
advantages are NaN. Which estimator to choose, and how to add one: docs/credit.md.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from learners.advantages.group_baseline import group_relative, leave_one_out
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
from learners.advantages.turn_credit import (
    CREDITS,
    SCORES,
    USERRL_EPSILON,
    reward_to_go,
    spread,
    userrl_compat,
    userrl_credits,
)
from simulators.plug_ins import plug_in


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupTurns:
    """The turns of a group's trajectories that did not fail. Lists are by trajectory, then by turn."""

    rewards: TurnRewards
    num_tokens: Sequence[Int[ndarray, "num_turns"]]  # [group_size]
    """Completion tokens of each turn."""
    states: Sequence[Sequence[Hashable]]  # [group_size][num_turns]
    """The policy's knowledge before each turn, as a key; empty if unknown."""
    values: Sequence[Float[ndarray, "num_turns"]] = ()  # [group_size]
    """The critic's value before each turn; empty without a critic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CreditRule:
    """How a gym's rewards become advantages; `LearnerConfig` explains the names.

    Example: `CreditRule(advantage="grpo", trajectory_score="sum", gamma=1.0).advantages([np.array([0.0,
    1.0]), np.array([0.0])])` gives [[1, 1], [-1]]."""

    advantage: str
    """The estimator's name in `ADVANTAGES`, or `custom`."""
    trajectory_score: str
    turn_credit: str = "equalized"
    gamma: float
    gae_lambda: float = 0.9
    function: str = ""
    """`module:function` of a custom estimator."""

    @property
    def estimator(self) -> "Estimator":
        return Estimator(estimate=plug_in(self.function)) if self.function else ADVANTAGES[self.advantage]

    def advantages(
        self,
        rewards: TurnRewards,
        *,
        num_tokens: Sequence[ndarray] | None = None,
        states: Sequence[Sequence[Hashable]] | None = None,
        values: Sequence[ndarray] | None = None,
    ) -> TurnAdvantages:
        """Advantages of one group, NaN for a trajectory that failed. `num_tokens` None means that all turns
        are equally long; `states` and `values` as in `GroupTurns`."""
        kept = [row for row, turns in enumerate(rewards) if all(map(math.isfinite, turns.tolist()))]
        group = GroupTurns(
            rewards=[rewards[row] for row in kept],
            num_tokens=[
                np.ones(len(rewards[row]), int) if num_tokens is None else num_tokens[row] for row in kept
            ],
            states=[states[row] for row in kept] if states is not None else [],
            values=[values[row] for row in kept] if values is not None else [],
        )
        advantages: TurnAdvantages = [np.full(len(turns), np.nan) for turns in rewards]
        for row, own in zip(kept, self.estimator.estimate(group, self), strict=True):
            advantages[row] = own
        return advantages

    def scores(self, rewards: TurnRewards) -> Float[ndarray, "group_size"]:
        """The score of each trajectory."""
        score = SCORES[self.trajectory_score]
        return np.array([score(turns, self.gamma) for turns in rewards], float)

    def credits(self, rewards: TurnRewards) -> list[Float[ndarray, "num_turns"]]:  # [group_size]
        """The weight of each turn within its trajectory."""
        credit = CREDITS[self.turn_credit]
        return [credit(turns, self.gamma) for turns in rewards]


def own_rewards(rule: CreditRule, rewards: TurnRewards) -> TurnAdvantages:
    """The reward of each turn."""
    return [np.asarray(turns, float) for turns in rewards]


def rewards_to_go(rule: CreditRule, rewards: TurnRewards) -> TurnAdvantages:
    """The reward-to-go of each turn."""
    return [reward_to_go(turns, gamma=rule.gamma) for turns in rewards]


def compat_credits(rule: CreditRule, rewards: TurnRewards) -> TurnAdvantages:
    """`userrl_credits` of each trajectory."""
    method, gamma = rule.turn_credit, rule.gamma
    return [np.array(userrl_credits(turns.tolist(), method=method, gamma=gamma)) for turns in rewards]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimator:
    """An estimator and its properties."""

    estimate: Callable[[GroupTurns, CreditRule], TurnAdvantages]
    credit: Callable[[CreditRule, TurnRewards], TurnAdvantages] = own_rewards
    """Each turn's worth before any comparison or weight; for the archive's `credit` column."""
    spreads: bool = False
    """Whether it spreads a trajectory's advantage over the turns by `turn_credit`; the others credit each
    turn themselves."""
    asks_critic: bool = False
    """Whether it needs `GroupTurns.values`, so that only the learner can compute advantages."""
    compares_states: bool = False
    """Whether it reads `GroupTurns.states`, which are slow to compute."""
    keeps_shaping: bool = False
    """Whether it sums discounted rewards per turn, so that potential-based shaping keeps the best policy."""


def spread_advantages(
    turns: GroupTurns, rule: CreditRule, *, compare: Callable[[ndarray], ndarray]
) -> TurnAdvantages:
    """Scores each trajectory, compares within the group, spreads over the turns by credit (UserRL, arXiv
    2509.19736 §4: any score with any credit)."""
    advantages = compare(rule.scores(turns.rewards))
    if rule.turn_credit == "equalized":  # as `spread` does for equal credits, but faster
        return [
            np.full(len(own), advantage) for own, advantage in zip(turns.rewards, advantages, strict=True)
        ]
    credits = rule.credits(turns.rewards)
    return [
        spread(float(advantage), weights, num_tokens=lengths)
        for advantage, weights, lengths in zip(advantages, credits, turns.num_tokens, strict=True)
    ]


def printed_advantages(turns: GroupTurns, rule: CreditRule) -> TurnAdvantages:
    """A_t = (c_t - mu) / (sigma + 1e-6), mu and sigma of the group's trajectory scores: UserRL's §4.4 as
    printed.

    Credit and score have different units: with equalized credit the trajectory's own score has no influence.
    For comparison only.
    """
    scores = rule.scores(turns.rewards)
    mean, std = (float(scores.mean()), float(scores.std())) if len(scores) else (0.0, 1.0)
    return [(credits - mean) / (std + USERRL_EPSILON) for credits in rule.credits(turns.rewards)]


def compat_advantages(turns: GroupTurns, rule: CreditRule) -> TurnAdvantages:
    """`userrl_compat` on a group."""
    return userrl_compat(
        turns.rewards,
        num_tokens=turns.num_tokens,
        trajectory_score=rule.trajectory_score,
        turn_credit=rule.turn_credit,
        gamma=rule.gamma,
    )


def gae_advantages(turns: GroupTurns, rule: CreditRule) -> TurnAdvantages:
    """`turn_gae` of each trajectory by itself: the critic, not the group, is the baseline. The value after
    the last turn is 0 for every stop reason: the limit of turns is part of the task."""
    if len(turns.values) != len(turns.rewards):
        raise ValueError(
            f"values of {len(turns.values)} trajectories: turn_gae needs the critic's of all "
            f"{len(turns.rewards)}"
        )
    return [
        turn_gae(rewards, values=values, gamma=rule.gamma, gae_lambda=rule.gae_lambda)
        for rewards, values in zip(turns.rewards, turns.values, strict=True)
    ]


ADVANTAGES: dict[str, Estimator] = {
    "grpo": Estimator(
        estimate=partial(spread_advantages, compare=partial(group_relative, divide_by_std=True)),
        credit=CreditRule.credits,
        spreads=True,
    ),
    "dr_grpo": Estimator(
        estimate=partial(spread_advantages, compare=partial(group_relative, divide_by_std=False)),
        credit=CreditRule.credits,
        spreads=True,
    ),
    "rloo": Estimator(
        estimate=partial(spread_advantages, compare=leave_one_out), credit=CreditRule.credits, spreads=True
    ),
    "userrl_compat": Estimator(estimate=compat_advantages, credit=compat_credits, spreads=True),
    "userrl_printed": Estimator(estimate=printed_advantages, credit=CreditRule.credits, spreads=True),
    "turn_mean": Estimator(
        estimate=lambda turns, rule: turn_mean_advantages(turns.rewards, gamma=rule.gamma),
        credit=rewards_to_go,
        keeps_shaping=True,
    ),
    "turn_loo": Estimator(
        estimate=lambda turns, rule: turn_loo_advantages(turns.rewards, gamma=rule.gamma),
        credit=rewards_to_go,
        keeps_shaping=True,
    ),
    "mt_grpo": Estimator(
        estimate=lambda turns, rule: mt_grpo_advantages(turns.rewards, outcomes=rule.scores(turns.rewards))
    ),
    "gigpo": Estimator(
        estimate=lambda turns, rule: gigpo_advantages(
            turns.rewards, states=turns.states, outcomes=rule.scores(turns.rewards), gamma=rule.gamma
        ),
        credit=rewards_to_go,
        compares_states=True,
    ),
    "igpo": Estimator(estimate=lambda turns, rule: igpo_advantages(turns.rewards, gamma=rule.gamma)),
    "turn_gae": Estimator(estimate=gae_advantages, asks_critic=True, keeps_shaping=True),
}
