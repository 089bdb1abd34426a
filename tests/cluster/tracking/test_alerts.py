"""Alerts: what makes one, and how often it is told."""

from collections.abc import Iterable

import pytest

from cluster.tracking.alerts import QUIET_STEPS, Alert, RunAlerts, stopped
from simulators.config import GaugeLimits


def alerts() -> RunAlerts:
    return RunAlerts(limits=GaugeLimits(), max_logprob_gap=0.02)


def told(key: str, values: Iterable[float | None]) -> list[tuple[int, str]]:
    """(step, kind) of all alerts of a run in which one number takes these values."""
    watch = alerts()
    return [
        (step, alert.kind)
        for step, value in enumerate(values, 1)
        for alert in watch.look(step, metrics={key: value})
    ]


def test_entropy_collapses_when_five_steps_are_under_a_tenth_of_the_first_five() -> None:
    # The window's mean is 0.2 * (1, .8, .6, .4, .2, 0) as zeros come in: under 0.1 with the fifth.
    assert told("learner/entropy", [1.0] * 5 + [0.0] * 5) == [(10, "entropy")]
    assert told("learner/entropy", [1.0] * 5 + [0.11] * 50) == []


def test_reward_collapses_when_it_is_under_half_of_its_best() -> None:
    # Windows of 0.8 and then n zeros have the mean 0.8 * (5 - n) / 5: under 0.4 with the third.
    assert told("rollout/reward/mean", [0.8] * 5 + [0.0] * 5) == [(8, "reward")]
    assert told("rollout/reward/mean", [0.09] * 5 + [0.0] * 50) == [], "noise cannot collapse"
    assert told("rollout/reward/mean", [0.8] * 5 + [None] * 50) == [], "what is not known is not zero"


@pytest.mark.parametrize(("flat_a_step", "expected"), [(81.0, [(6, "flat")]), (79.0, [])])
def test_flat_groups_are_told_by_their_share_of_what_was_settled(
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
        found += [(step, alert.kind) for alert in watch.look(step, metrics=metrics)]
    assert found == expected


def test_a_wait_is_stuck_if_it_is_long_and_far_longer_than_usual() -> None:
    assert told("time/wait_s", [5.0] * 5 + [59.0]) == []
    assert told("time/wait_s", [5.0] * 5 + [61.0]) == [(6, "stuck")]
    assert told("time/wait_s", [100.0] * 50) == [], "a slow run is not stuck"


WAITS = "step 3 waits for groups: 1 of 4 groups are ready after 3 s"


def test_a_step_that_waits_for_too_long_is_told_once() -> None:
    watch = alerts()
    for step in (1, 2):
        watch.look(step, metrics={"time/wait_s": 1.0, "time/step_s": 70.0})
    assert [watch.wait(WAITS, at=1000.0 + after) for after in (0, 300, 699)] == [[], [], []]
    (late,) = watch.wait(WAITS, at=1000.0 + 701)
    assert (late.kind, late.text.partition(":")[0]) == (
        "stuck",
        "step 3 waits for groups, for 701 s by now, where the usual one takes 70 s",
    )
    assert watch.wait(WAITS, at=1000.0 + 9000) == []
    assert watch.wait("", at=1000.0 + 9000) == []
    assert watch.look(3, metrics={"time/wait_s": 9000.0}) == [], "nor again, when it is over"


def test_the_first_step_of_a_process_may_be_stuck_too() -> None:
    watch = alerts()
    assert watch.wait(WAITS, at=1e6) == [], "whatever came before it"
    assert watch.wait(WAITS, at=1e6 + 599) == []
    assert [alert.kind for alert in watch.wait(WAITS, at=1e6 + 601)] == ["stuck"]


def test_a_wait_that_ends_is_forgotten() -> None:
    watch = alerts()
    for at in (0.0, 599.0):
        assert watch.wait(WAITS, at=at) == []
    assert [watch.wait(text, at=at) for text, at in (("", 599.5), (WAITS, 600.0), (WAITS, 1199.0))] == [
        []
    ] * 3


def test_a_gap_is_told_at_half_of_what_stops_the_run() -> None:
    assert told("learner/logprob_gap/mean", [0.0099, 0.0101]) == [(2, "gap")]


def test_a_gauge_is_told_with_its_limit() -> None:
    metrics = {"users/qwen/goal_leaks": 0.31, "users/qwen/goal_leaks/num_cases": 120.0}
    (alert,) = alerts().look(1, metrics=metrics)
    assert alert.text.startswith("users/qwen/goal_leaks=0.31 of 120 is above 0.02")


def test_an_alert_that_lasts_is_told_again_after_a_while() -> None:
    steps = [step for step, _ in told("learner/logprob_gap/mean", [0.015] * (2 * QUIET_STEPS + 1))]
    assert steps == [1, 1 + QUIET_STEPS, 1 + 2 * QUIET_STEPS]


def test_every_title_fits_wandb() -> None:
    error: Alert = stopped(RuntimeError("first line\nsecond"), step=7)
    assert error.text == "after step 7: RuntimeError: first line"
    assert len(error.title) < 64
