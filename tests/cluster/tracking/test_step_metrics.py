"""Metrics of a step, computed by hand."""

import math

import pytest

from actors.engines.engine_clock import EngineUsage
from actors.trajectory import StopReason
from actors.trajectory_table import SCHEMA, TURN_STAGES
from cluster.tracking.step_metrics import (
    StageTimer,
    age_metrics,
    engine_metrics,
    rollout_metrics,
    step_metrics,
)
from tests.fakes import make_summary


def test_metrics_of_a_step_computed_by_hand():
    summaries = [
        make_summary(
            [1.0, 0.0],
            gym="travel",
            num_turns=[2, 4],
            num_policy_tokens=60,
            versions=(3, 5),
            spans=[1, 2],
            duration_s=2.0,
            policy_s=3.0,
            queue_s=0.5,
            user_s=1.0,
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
            queue_s=0.5,
            tool_s=0.5,
            reward_s=1.5,
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
        "rollout/time/policy/share": pytest.approx(0.6),
        "rollout/time/queue/share": pytest.approx(0.1),
        "rollout/time/user/share": pytest.approx(0.1),
        "rollout/time/tool/share": pytest.approx(0.05),
        "rollout/time/reward/share": pytest.approx(0.15),
        "rollout/turn_s/function": pytest.approx(5.5 / 106),
        "rollout/turn_s/travel": pytest.approx(0.75),
        "buffer/age/mean": pytest.approx(1.0),
        "buffer/age/max": 2.0,
        "buffer/span/mean": pytest.approx(0.75),
        "buffer/span/max": 2.0,
    }


def test_the_mean_is_over_trajectories_and_not_over_groups():
    summaries = [make_summary([1.0, 1.0, 1.0, 0.0]), make_summary([0.0, math.nan, math.nan, math.nan])]
    metrics = rollout_metrics(summaries, duration_s=1.0)
    assert metrics["rollout/reward/mean"] == metrics["rollout/reward/function"] == pytest.approx(0.6)


def test_the_concurrency_of_a_simulator_is_a_mean_over_its_groups_with_a_limit():
    summaries = [make_summary([1.0], user_concurrency=limit) for limit in (8.0, 0.0, 4.0)]
    metrics = rollout_metrics(summaries, duration_s=1.0)
    assert metrics["users/rules/concurrency/mean"] == pytest.approx(6.0)
    assert not [key for key in rollout_metrics(summaries[1:2], duration_s=1.0) if "concurrency" in key]


def test_a_step_without_any_wait_has_shares_of_zero():
    metrics = rollout_metrics([make_summary([1.0, 0.0])], duration_s=1.0)
    assert [metrics[f"rollout/time/{stage}/share"] for stage in TURN_STAGES] == [0.0] * 5


def test_learners_are_idle_while_they_neither_compute_an_update_nor_pack_weights():
    times = {"time/wait_s": 2.0, "time/update_s": 5.0, "time/weights_s": 1.0, "time/step_s": 10.0}
    metrics = step_metrics(times, update={"time/learn_s": 4.0}, settled=[make_summary([1.0, 0.0])])
    assert metrics["learner/idle/share"] == pytest.approx(0.5)
    assert metrics["rollout/tokens_per_s"] == 0.0 and metrics.items() >= times.items()


def test_engine_metrics_are_means_over_engines():
    usages = [
        EngineUsage(duration_s=10.0, idle_s=1.0, paused_s=0.5, request_s=40.0),
        EngineUsage(duration_s=5.0, idle_s=2.0, paused_s=0.0, request_s=5.0),
    ]
    assert engine_metrics(usages) == {
        "engine/idle/share": pytest.approx(0.25),
        "engine/paused/share": pytest.approx(0.025),
        "engine/requests/mean": pytest.approx(2.5),
    }


def test_the_stages_of_a_step_add_up_to_it():
    laps = StageTimer()
    for stage in ("wait", "sync", "update", "sync"):
        laps.end(stage)
    metrics = laps.metrics()
    assert metrics.keys() == {"time/wait_s", "time/sync_s", "time/update_s", "time/step_s"}
    assert 2 * metrics["time/step_s"] == pytest.approx(sum(metrics.values()))


def test_every_stage_is_a_column_of_the_rows_that_its_share_is_read_from():
    assert {f"{stage}_s" for stage in TURN_STAGES} <= set(SCHEMA.names)
