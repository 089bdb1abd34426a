"""The scaling policy: the bottleneck of a step, and the process counts that policy. Numbers by hand."""

import math
from dataclasses import replace

import pytest

from cluster.config.run_config import RunConfig
from cluster.workers.autoscaler import (
    PATIENCE_STEPS,
    ProcessCounts,
    ScalingPolicy,
    changed,
    find_bottleneck,
    initial_counts,
    max_counts,
)

LOW = ProcessCounts(rollouts=2, engines=1, simulators=1)
HIGH = ProcessCounts(rollouts=8, engines=4, simulators=4)


def metrics(
    *, learner: float, engine: float, requests: float, wait_s: float = 1.0, user: float = 0.1
) -> dict[str, float]:
    """Of a step of ten seconds: idle shares, and requests in flight at an engine of 64 slots."""
    return {
        "time/step_s": 10.0,
        "time/wait_s": wait_s,
        "learner/idle/share": learner,
        "engine/idle/share": engine,
        "engine/requests/mean": requests,
        "rollout/time/user/share": user,
    }


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        (metrics(learner=0.5, engine=0.02, requests=60), "engines"),
        (metrics(learner=0.5, engine=0.02, requests=20), "dialogues"),
        (metrics(learner=0.5, engine=0.4, requests=10), "dialogues"),
        (metrics(learner=0.02, engine=0.6, requests=10), "learners"),
        (metrics(learner=0.02, engine=0.05, requests=60), ""),
        (metrics(learner=0.15, engine=0.6, requests=10), ""),
        (metrics(learner=math.nan, engine=math.nan, requests=math.nan), ""),
    ],
)
def test_the_bottleneck_of_a_step(step: dict[str, float], limit: str) -> None:
    assert find_bottleneck(step, places=64, is_synchronous=False) == limit


def test_synchronous_engines_are_judged_by_the_wait_for_groups() -> None:
    """The learners take five of ten seconds: an engine that idles for half of the step is full."""
    step = metrics(learner=0.5, engine=0.5, requests=30, wait_s=5.0)
    assert find_bottleneck(step, places=64, is_synchronous=True) == "engines"
    assert find_bottleneck(step, places=64, is_synchronous=False) == "dialogues"
    step = metrics(learner=0.9, engine=0.9, requests=1, wait_s=0.5)
    assert find_bottleneck(step, places=64, is_synchronous=True) == "", "the wait for groups is short"


def test_a_number_changes_by_a_quarter_and_at_least_by_one() -> None:
    sizes = ProcessCounts(rollouts=8, engines=1, simulators=4)
    assert changed(sizes, "engines", users_are_slow=True) == ProcessCounts(
        rollouts=8, engines=2, simulators=4
    )
    assert changed(sizes, "dialogues", users_are_slow=False) == ProcessCounts(
        rollouts=10, engines=1, simulators=4
    )
    assert changed(sizes, "dialogues", users_are_slow=True) == ProcessCounts(
        rollouts=10, engines=1, simulators=5
    )
    assert changed(sizes, "learners", users_are_slow=True) == ProcessCounts(
        rollouts=6, engines=0, simulators=4
    )


def make_policy() -> ScalingPolicy:
    return ScalingPolicy(low=LOW, high=HIGH, places=64, is_synchronous=False)


def wanted(policy: ScalingPolicy, now: ProcessCounts, steps: list[dict[str, float]]) -> list[ProcessCounts]:
    return [policy.wanted(step, now=now) for step in steps]


def test_a_change_needs_three_steps_with_the_same_bottleneck() -> None:
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    fine = metrics(learner=0.05, engine=0.05, requests=60)
    grown = ProcessCounts(rollouts=2, engines=2, simulators=1)
    assert wanted(make_policy(), LOW, [slow, slow, fine, slow, slow]) == [LOW] * 5
    assert wanted(make_policy(), LOW, [slow] * (2 * PATIENCE_STEPS)) == [LOW, LOW, grown] * 2


def test_counts_stay_between_the_initial_and_the_recipes_limits() -> None:
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    assert wanted(make_policy(), HIGH, [slow] * PATIENCE_STEPS)[-1] == HIGH
    idle_engines = metrics(learner=0.02, engine=0.9, requests=1)
    assert wanted(make_policy(), LOW, [idle_engines] * PATIENCE_STEPS)[-1] == LOW
    assert wanted(make_policy(), HIGH, [idle_engines] * PATIENCE_STEPS)[-1] == ProcessCounts(
        rollouts=6, engines=3, simulators=4
    )


def test_a_users_counts_are_the_new_lower_limit() -> None:
    policy, asked = make_policy(), ProcessCounts(rollouts=16, engines=3, simulators=1)
    policy.set_by_user(asked)
    idle_engines = metrics(learner=0.02, engine=0.9, requests=1)
    assert wanted(policy, asked, [idle_engines] * PATIENCE_STEPS)[-1] == asked
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    assert wanted(policy, asked, [slow] * PATIENCE_STEPS)[-1] == ProcessCounts(
        rollouts=16, engines=4, simulators=1
    )


def test_without_a_limit_in_the_recipe_a_users_last_counts_are_kept() -> None:
    policy = ScalingPolicy(low=LOW, high=replace(LOW, engines=4), places=64, is_synchronous=False)
    policy.set_by_user(ProcessCounts(rollouts=4, engines=2, simulators=1))
    asked = ProcessCounts(rollouts=1, engines=2, simulators=1)
    policy.set_by_user(asked)
    idle = metrics(learner=0.5, engine=0.4, requests=10)
    assert wanted(policy, asked, [idle] * PATIENCE_STEPS)[-1] == asked
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    assert wanted(policy, asked, [slow] * PATIENCE_STEPS)[-1] == replace(asked, engines=3)


def test_without_limits_in_the_recipe_the_counts_are_fixed() -> None:
    config = RunConfig.model_validate({"rollout": {"num_actors": 3, "max_actors": 5}})
    assert initial_counts(config) == ProcessCounts(rollouts=3, engines=1, simulators=1)
    assert max_counts(config) == ProcessCounts(rollouts=5, engines=1, simulators=1)


@pytest.mark.parametrize(
    ("section", "low", "high"),
    [
        ("rollout", "num_actors", "max_actors"),
        ("engine", "num_engines", "max_engines"),
        ("simulator", "num_replicas", "max_replicas"),
    ],
)
def test_a_limit_below_the_initial_number_is_refused(section: str, low: str, high: str) -> None:
    with pytest.raises(ValueError, match=f"{high}=1 is less than {low}=2"):
        RunConfig.model_validate({section: {low: 2, high: 1}})
