"""Reward functions: a group's table in, one number a turn out. They read text and outcomes, never token ids.

A new reward is one function and one line in `REWARDS`.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.table import REWARD

Rewards = NDArray[np.float64]  # [num_turns of the group]
RewardFn = Callable[[pa.Table], Rewards]


def environment(table: pa.Table) -> Rewards:
    """The gym's own reward of each turn; a dialogue's sum is its score, in [0, 1]."""
    return table["env_reward"].to_numpy()


def turn(table: pa.Table) -> Rewards:
    """1 a turn. With a negative weight: the cost of taking the user's time."""
    return np.ones(table.num_rows)


def no_tool_call(table: pa.Table) -> Rewards:
    """1 where the completion held no valid tool call."""
    return np.asarray(table["choice"].is_null(), np.float64)


def with_rewards(table: pa.Table, weights: Mapping[str, float]) -> pa.Table:
    """The table with its `reward` column: the weighted sum, NaN on every turn of a trajectory that failed.

    A failure is never a score: whoever averages these numbers must leave failed trajectories out, and sees it
    if not.
    """
    total = sum((weight * REWARDS[name](table) for name, weight in weights.items()), np.zeros(table.num_rows))
    total = np.where(table["failed"].to_numpy(), np.nan, total)
    return table.append_column(REWARD, pa.array(total, pa.float64(), from_pandas=False))


REWARDS: dict[str, RewardFn] = {
    "environment": environment,
    "turn": turn,
    "no_tool_call": no_tool_call,
}
