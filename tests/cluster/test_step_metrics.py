"""A step's rollout numbers, by hand."""

import math

import pytest

from actors.trajectory import StopReason
from cluster.step_metrics import age_metrics, rollout_metrics
from tests.fakes import make_summary


def test_numbers_of_a_step_by_hand():
    summaries = [
        make_summary(
            [1.0, 0.0],
            gym="travel",
            num_turns=[2, 4],
            num_policy_tokens=60,
            versions=(3, 5),
            duration_s=2.0,
            policy_s=3.0,
            env_s=1.0,
            user_retries=1,
        ),
        make_summary(
            [0.5, math.nan],
            gym="function",
            stop_reasons=[StopReason.MAX_TURNS, StopReason.ENGINE_ERROR],
            num_turns=[6, 100],
            num_policy_tokens=40,
            versions=(5, 5),
            duration_s=1.0,
            policy_s=3.0,
            env_s=1.0,
            user_retries=2,
        ),
    ]
    metrics = rollout_metrics(summaries, duration_s=4.0) | age_metrics(summaries, policy_version=5)
    assert metrics == {
        "rollout/reward/mean": pytest.approx(0.5),
        "rollout/reward/function": pytest.approx(0.5),
        "rollout/reward/travel": pytest.approx(0.5),
        "rollout/turns/mean": pytest.approx(4.0),
        "rollout/policy_tokens": 100.0,
        "rollout/tokens_per_s": pytest.approx(25.0),
        "rollout/group_duration_s/max": 2.0,
        "rollout/user_retries": 3.0,
        "rollout/wait_for_engine/share": pytest.approx(0.75),
        "buffer/age/mean": pytest.approx(1.0),
        "buffer/age/max": 2.0,
        "buffer/span/max": 2.0,
    }


def test_the_mean_is_over_trajectories_and_not_over_groups():
    summaries = [make_summary([1.0, 1.0, 1.0, 0.0]), make_summary([0.0, math.nan, math.nan, math.nan])]
    metrics = rollout_metrics(summaries, duration_s=1.0)
    assert metrics["rollout/reward/mean"] == metrics["rollout/reward/function"] == pytest.approx(0.6)


def test_a_step_without_any_wait_has_a_share_of_zero():
    metrics = rollout_metrics([make_summary([1.0, 0.0])], duration_s=1.0)
    assert metrics["rollout/wait_for_engine/share"] == 0.0
