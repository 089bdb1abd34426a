"""A summary's numbers, by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from actors.group_summary import summarize
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn, as_ids
from actors.trajectory_table import to_table
from rewards.reward_functions import RewardContext
from rewards.scorer import with_rewards
from simulators.user import UserReply
from tests.fakes import credited, make_key

KEY = make_key("travel")


def turn(*, reward: float, versions: list[int]) -> Turn:
    size = len(versions)
    return Turn(
        context_ids=as_ids([1]),
        forked=False,
        completion=Completion.of([2] * size, logprobs=[-1.0] * size, policy_versions=versions),
        text="",
        action=None,
        feedback="",
        reward=reward,
        user_reply=UserReply(text="Yes.", num_retries=1, concurrency=4 * size),
        policy_s=0.5,
        queue_s=0.125,
        user_s=0.25,
        tool_s=0.0625,
    )


def trajectory(turns: list[Turn], stop_reason: StopReason) -> Trajectory:
    return Trajectory(task_key=KEY, system="", opening="", turns=turns, stop_reason=stop_reason)


def test_numbers_of_a_group_by_hand():
    order = GroupOrder(group_id=9, task_key=KEY, group_size=4, seed=1)
    trajectories = [
        trajectory(
            [turn(reward=0.25, versions=[5, 5]), turn(reward=0.5, versions=[5, 6, 6])], StopReason.TERMINATED
        ),
        trajectory([turn(reward=0.5, versions=[4])], StopReason.SIMULATOR_ERROR),
        trajectory([], StopReason.ENGINE_ERROR),
        trajectory([turn(reward=0.0, versions=[6, 7])], StopReason.MAX_TURNS),
    ]
    table = with_rewards(to_table(order, trajectories), {"environment": 2.0, "turn": -0.1}, RewardContext())
    summary = summarize(order, credited(table), duration_s=3.5)
    assert (summary.group_id, summary.task_key, summary.duration_s) == (9, KEY, 3.5)
    np.testing.assert_allclose(summary.scores, [0.75, math.nan, math.nan, 0.0])
    np.testing.assert_allclose(summary.rewards, [1.3, math.nan, math.nan, -0.1])
    assert list(summary.num_turns) == [2, 1, 0, 1]
    assert (summary.drop_reasons, summary.group_drop_reason) == (["", "failed", "failed", ""], "")
    assert list(summary.stop_reasons) == [t.stop_reason for t in trajectories]
    assert summary.num_policy_tokens == 8
    assert (summary.oldest_version, summary.newest_version) == (5, 7), "what failed is not trained: not its 4"
    assert summary.version_spans == [1, 0, 0, 1]
    assert (summary.policy_s, summary.queue_s, summary.user_s, summary.tool_s) == (2.0, 0.5, 1.0, 0.25)
    assert (summary.reward_s, summary.user_retries, summary.user_concurrency) == (0.0, 4, 8.0)


def test_a_group_is_as_old_as_its_oldest_token_that_can_be_trained():
    """One that was cut, or that nobody could score, would drop tokens that are young enough."""
    order = GroupOrder(group_id=0, task_key=KEY, group_size=2, seed=1, num_extra=1)

    def oldest(*trajectories: Trajectory, reward: float = 1.0) -> int:
        table = with_rewards(to_table(order, trajectories), {"environment": reward}, RewardContext())
        return summarize(order, credited(table), duration_s=1.0).oldest_version

    young = [
        trajectory(
            [turn(reward=0.0, versions=[6, 5]), turn(reward=1.0, versions=[7])], StopReason.TERMINATED
        ),
        trajectory([turn(reward=0.5, versions=[7])], StopReason.MAX_TURNS),
    ]
    old = turn(reward=0.0, versions=[1, 2])
    for reason in (StopReason.TIME_LIMIT, StopReason.SURPLUS, StopReason.ENGINE_ERROR):
        assert oldest(trajectory([old], reason), *young) == 5
        assert oldest(*young, trajectory([old, old], reason)) == 5
    unscored = trajectory([turn(reward=math.inf, versions=[1])], StopReason.TERMINATED)
    assert oldest(young[0], unscored, young[1]) == 5
    assert oldest(*young, trajectory([old], StopReason.NO_TOOL_CALL)) == 1
    assert oldest(*[unscored] * 3) > 10**9


def test_a_group_without_a_token_has_a_summary():
    order = GroupOrder(group_id=0, task_key=KEY, group_size=2, seed=1)
    trajectories = [trajectory([], StopReason.ERROR), trajectory([], StopReason.MAX_TOKENS)]
    table = with_rewards(to_table(order, trajectories), {"environment": 1.0}, RewardContext())
    summary = summarize(order, credited(table), duration_s=1.0)
    np.testing.assert_allclose(summary.scores, [math.nan, 0.0])
    assert (list(summary.num_turns), summary.num_policy_tokens) == ([0, 0], 0)
    assert summary.oldest_version > 10**9, "nothing sampled is never stale"


def test_a_group_belongs_to_the_user_who_played_or_failed_it_and_never_to_the_web():
    order = GroupOrder(group_id=0, task_key=KEY, group_size=1, seed=1)

    def simulator_of(*, answered_by: Sequence[str], asked: str) -> str:
        turns = [
            replace(turn(reward=0.0, versions=[0]), user_reply=UserReply(text="Yes.", simulator=name))
            for name in answered_by
        ]
        failed = replace(trajectory(turns, StopReason.ROLE_FLIP), simulator=asked)
        table = with_rewards(to_table(order, [failed]), {"environment": 1.0}, RewardContext())
        return summarize(order, credited(table), duration_s=1.0).simulator

    assert simulator_of(answered_by=[], asked="qwen") == "qwen"
    assert simulator_of(answered_by=["web", "qwen"], asked="qwen") == "qwen"
    assert simulator_of(answered_by=["web"], asked="web") == ""


def test_python_numbers_only_travel():
    order = GroupOrder(group_id=0, task_key=KEY, group_size=1, seed=1)
    table = with_rewards(
        to_table(order, [trajectory([turn(reward=1.0, versions=[0])], StopReason.TERMINATED)]),
        {"environment": 1.0},
        RewardContext(),
    )
    summary = summarize(order, credited(table), duration_s=1.0)
    assert [type(x) for x in (*summary.rewards, *summary.scores)] == [float, float]
    assert [type(x) for x in (*summary.num_turns, summary.oldest_version, summary.user_retries)] == [
        int,
        int,
        int,
    ]
    assert summary.scores == pytest.approx([1.0])
