"""A reward function of your own. A recipe names it by its module and gives it a weight:

[reward.weights]
environment = 1.0
"examples.own_reward:one_question" = 0.05
"""

import numpy as np
import pyarrow as pa

from rewards.reward_functions import RewardContext, Rewards


def one_question(table: pa.Table, context: RewardContext) -> Rewards:
    """1 for a turn that asks the user at most one question, else 0: one number for each row, [num_rows].

    The table has a row for each turn of a group; `actors/trajectory_table.py` lists its columns."""
    asked = zip(table["choice"].to_pylist(), table["content"].to_pylist(), strict=True)
    return np.array([float(choice == "action" and content.count("?") <= 1) for choice, content in asked])
