"""An advantage estimator of your own: the group's median as the baseline. A recipe names its function:

[learner]
advantage = { type = "custom", function = "examples.own_advantage:above_median", gamma = 0.9 }
"""

import numpy as np

from learners.advantages.estimators import CreditRule, GroupTurns
from learners.advantages.turn_advantages import TurnAdvantages


def above_median(turns: GroupTurns, rule: CreditRule) -> TurnAdvantages:
    """A trajectory's score minus the median score of its group, at each of its turns.

    Rewards and advantages are lists by trajectory, then by turn: [group_size][num_turns]. Failed trajectories
    are left out before the call."""
    scores = rule.scores(turns.rewards)
    return [
        np.full(len(rewards), score - np.median(scores))
        for rewards, score in zip(turns.rewards, scores, strict=True)
    ]
