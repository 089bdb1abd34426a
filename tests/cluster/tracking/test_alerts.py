"""Alerts: their conditions, and their rate limit."""

from collections.abc import Iterable

import pytest

from cluster.tracking.alerts import QUIET_STEPS, Alert, RunAlerts, stopped
from simulators.config import GaugeLimits


def alerts() -> RunAlerts:
    return RunAlerts(limits=GaugeLimits(), max_logprob_gap=0.02)


def alerts_of(key: str, values: Iterable[float | None]) -> list[tuple[int, str]]:
    """(step, kind) of all alerts of a run in which one metric has these values."""
    watch = alerts()
    return [
        (step, alert.kind)
        for step, value in enumerate(values, 1)
        for alert in watch.check_step(step, metrics={key: value})
    ]


def test_entropy_collapse_is_five_steps_below_a_tenth_of_the_first_five() -> None:
    # The window's mean is 0.2 * (1, .8, .6, .4, .2, 0) as zeros come in: below 0.1 with the fifth.
    assert alerts_of("learner/entropy", [1.0] * 5 + [0.0] * 5) == [(10, "entropy")]
    assert alerts_of("learner/entropy", [1.0] * 5 + [0.11] * 50) == []


def test_reward_collapse_is_a_window_below_half_of_the_best() -> None:
    # Windows of 0.8 and then n zeros have the mean 0.8 * (5 - n) / 5: below 0.4 with the third.
    assert alerts_of("rollout/reward/mean", [0.8] * 5 + [0.0] * 5) == [(8, "reward")]
    assert alerts_of("rollout/reward/mean", [0.09] * 5 + [0.0] * 50) == [], "noise cannot collapse"
    assert alerts_of("rollout/reward/mean", [0.8] * 5 + [None] * 50) == [], "a missing value is not zero"


@pytest.mark.parametrize(("flat_a_step", "expected"), [(81.0, [(6, "flat")]), (79.0, [])])
def test_flat_groups_raise_an_alert_above_their_share_of_resolved_trajectories(
    flat_a_step: float, expected: list[tuple[int, str]]
) -> None:
    watch = alerts()
    found = []
    for step in range(1, 10):
        metrics = {
            "ledger/dropped/flat": flat_a_step * step,
            "ledger/dropped/failed": 0.0,
            "ledger/trained": (100 - flat_a_step) * step,
        }
        found += [(step, alert.kind) for alert in watch.check_step(step, metrics=metrics)]
    assert found == expected


def test_a_wait_is_stuck_if_it_is_long_and_far_longer_than_usual() -> None:
    assert alerts_of("time/wait_s", [5.0] * 5 + [59.0]) == []
    assert alerts_of("time/wait_s", [5.0] * 5 + [61.0]) == [(6, "stuck")]
    assert alerts_of("time/wait_s", [100.0] * 50) == [], "a slow run is not stuck"


WAITS = "step 3 waits for groups: 1 of 4 groups are ready after 3 s"


def test_a_step_that_waits_for_too_long_raises_one_alert() -> None:
    watch = alerts()
    for step in (1, 2):
        watch.check_step(step, metrics={"time/wait_s": 1.0, "time/step_s": 70.0})
    assert [watch.check_wait(WAITS, at=1000.0 + after) for after in (0, 300, 699)] == [[], [], []]
    (late,) = watch.check_wait(WAITS, at=1000.0 + 701)
    assert (late.kind, late.text.partition(":")[0]) == (
        "stuck",
        "step 3 waits for groups, for 701 s by now, while a usual step takes 70 s",
    )
    assert watch.check_wait(WAITS, at=1000.0 + 9000) == []
    assert watch.check_wait("", at=1000.0 + 9000) == []
    assert watch.check_step(3, metrics={"time/wait_s": 9000.0}) == [], "no second alert after the wait"


def test_the_first_step_of_a_process_may_be_stuck_too() -> None:
    watch = alerts()
    assert watch.check_wait(WAITS, at=1e6) == [], "its start does not count"
    assert watch.check_wait(WAITS, at=1e6 + 599) == []
    assert [alert.kind for alert in watch.check_wait(WAITS, at=1e6 + 601)] == ["stuck"]


def test_a_wait_that_ends_is_forgotten() -> None:
    watch = alerts()
    for at in (0.0, 599.0):
        assert watch.check_wait(WAITS, at=at) == []
    assert [watch.check_wait(text, at=at) for text, at in (("", 599.5), (WAITS, 600.0), (WAITS, 1199.0))] == [
        []
    ] * 3


def test_a_gap_raises_an_alert_at_half_of_what_stops_the_run() -> None:
    assert alerts_of("learner/logprob_gap/mean", [0.0099, 0.0101]) == [(2, "gap")]


def test_an_alert_of_a_gauge_has_its_limit() -> None:
    metrics = {"users/qwen/goal_leaks": 0.31, "users/qwen/goal_leaks/num_cases": 120.0}
    (alert,) = alerts().check_step(1, metrics=metrics)
    assert alert.text.startswith("users/qwen/goal_leaks=0.31 of 120 is above 0.02")


def test_a_lasting_alert_is_repeated_after_a_while() -> None:
    steps = [step for step, _ in alerts_of("learner/logprob_gap/mean", [0.015] * (2 * QUIET_STEPS + 1))]
    assert steps == [1, 1 + QUIET_STEPS, 1 + 2 * QUIET_STEPS]


def test_every_title_fits_wandb() -> None:
    error: Alert = stopped(RuntimeError("first line\nsecond"), step=7)
    assert error.text == "after step 7: RuntimeError: first line"
    assert len(error.title) < 64
