"""Rewards: one number a turn, weighted, and never one for a failure."""

import math

import numpy as np
import pytest

from actors.table import to_table
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn
from rewards.config import REWARD_NAMES, RewardConfig
from rewards.reward import REWARDS, with_rewards
from simulators.message import Action
from tests.fakes import make_key

KEY = make_key()
ORDER = GroupOrder(group_id=0, task_key=KEY, group_size=3, seed=0)


def turn(*, reward: float, acted: bool = True) -> Turn:
    return Turn(
        context_ids=[1],
        forked=False,
        completion=Completion(token_ids=[2], logprobs=[-1.0], policy_versions=[0]),
        text="",
        action=Action(choice="action", content="x") if acted else None,
        feedback="",
        reward=reward,
    )


def make_table():
    turns = [
        ([turn(reward=0.25), turn(reward=0.5, acted=False)], StopReason.NO_TOOL_CALL),
        ([turn(reward=0.75), turn(reward=0.0)], StopReason.SIMULATOR_ERROR),
        ([], StopReason.ERROR),
    ]
    return to_table(
        ORDER,
        [Trajectory(task_key=KEY, system="", opening="", turns=t, stop_reason=reason) for t, reason in turns],
    )


def rewards(weights: dict[str, float]) -> list[float]:
    return with_rewards(make_table(), weights)["reward"].to_pylist()


def test_the_environments_reward_stays_with_its_turn():
    np.testing.assert_allclose(rewards({"environment": 1.0})[:2], [0.25, 0.5])


def test_a_reward_is_the_weighted_sum_of_its_functions():
    np.testing.assert_allclose(
        rewards({"environment": 2.0, "turn": -0.1, "no_tool_call": -0.5})[:2], [0.4, 1.0 - 0.1 - 0.5]
    )


def test_every_turn_of_a_failed_trajectory_is_nan_whatever_the_weights():
    for weights in ({"environment": 1.0}, {"turn": 1.0}, {"environment": 0.0}, {}):
        assert [math.isnan(x) for x in rewards(weights)] == [False, False, True, True, True]


def test_nan_is_a_number_in_the_table_and_not_a_null():
    assert with_rewards(make_table(), {"environment": 1.0})["reward"].null_count == 0


def test_rewards_add_one_column_and_change_no_other():
    table = make_table()
    assert with_rewards(table, {"environment": 1.0}).drop_columns("reward") == table


def test_the_config_knows_every_reward_function_and_refuses_others():
    assert set(REWARDS) == set(REWARD_NAMES)
    with pytest.raises(ValueError, match="unknown reward function"):
        RewardConfig(weights={"turns": 1.0})
