"""How many processes a run should have: what limits it, and what follows from that. Numbers by hand."""

import math
from dataclasses import replace

import pytest

from cluster.config.run_config import RunConfig
from cluster.workers.scaling_rules import (
    PATIENCE_STEPS,
    ProcessCounts,
    ScalingNeed,
    changed,
    find_bottleneck,
    least_sizes,
    most_sizes,
)

LEAST = ProcessCounts(rollouts=2, engines=1, simulators=1)
MOST = ProcessCounts(rollouts=8, engines=4, simulators=4)


def metrics(
    *, learner: float, engine: float, requests: float, wait_s: float = 1.0, user: float = 0.1
) -> dict[str, float]:
    """Of a step of ten seconds: idle shares, and requests in flight at an engine of 64 places."""
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
def test_what_the_rest_waits_for(step: dict[str, float], limit: str) -> None:
    assert find_bottleneck(step, places=64, is_synchronous=False) == limit


def test_synchronous_engines_are_judged_by_the_time_that_is_theirs() -> None:
    """Five of ten seconds are the learners': an engine that idles for half of the step is full."""
    step = metrics(learner=0.5, engine=0.5, requests=30, wait_s=5.0)
    assert find_bottleneck(step, places=64, is_synchronous=True) == "engines"
    assert find_bottleneck(step, places=64, is_synchronous=False) == "dialogues"
    step = metrics(learner=0.9, engine=0.9, requests=1, wait_s=0.5)
    assert find_bottleneck(step, places=64, is_synchronous=True) == "", "nobody waits for groups"


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


def need() -> ScalingNeed:
    return ScalingNeed(least=LEAST, most=MOST, places=64, is_synchronous=False)


def note(follow: ScalingNeed, now: ProcessCounts, steps: list[dict[str, float]]) -> list[ProcessCounts]:
    return [follow.note(step, now=now) for step in steps]


def test_one_slow_step_is_no_trend_and_a_change_has_time_to_show() -> None:
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    fine = metrics(learner=0.05, engine=0.05, requests=60)
    grown = ProcessCounts(rollouts=2, engines=2, simulators=1)
    assert note(need(), LEAST, [slow, slow, fine, slow, slow]) == [LEAST] * 5
    assert note(need(), LEAST, [slow] * (2 * PATIENCE_STEPS)) == [LEAST, LEAST, grown] * 2


def test_a_run_grows_no_further_than_its_recipe_and_shrinks_no_further_than_it_began() -> None:
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    assert note(need(), MOST, [slow] * PATIENCE_STEPS)[-1] == MOST
    bored = metrics(learner=0.02, engine=0.9, requests=1)
    assert note(need(), LEAST, [bored] * PATIENCE_STEPS)[-1] == LEAST
    assert note(need(), MOST, [bored] * PATIENCE_STEPS)[-1] == ProcessCounts(
        rollouts=6, engines=3, simulators=4
    )


def test_what_a_person_asks_for_is_not_taken_back() -> None:
    follow, asked = need(), ProcessCounts(rollouts=16, engines=3, simulators=1)
    follow.set_by_hand(asked)
    bored = metrics(learner=0.02, engine=0.9, requests=1)
    assert note(follow, asked, [bored] * PATIENCE_STEPS)[-1] == asked
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    assert note(follow, asked, [slow] * PATIENCE_STEPS)[-1] == ProcessCounts(
        rollouts=16, engines=4, simulators=1
    )


def test_where_a_recipe_does_not_let_it_grow_a_run_keeps_what_a_person_asked_for_last() -> None:
    follow = ScalingNeed(least=LEAST, most=replace(LEAST, engines=4), places=64, is_synchronous=False)
    follow.set_by_hand(ProcessCounts(rollouts=4, engines=2, simulators=1))
    asked = ProcessCounts(rollouts=1, engines=2, simulators=1)
    follow.set_by_hand(asked)
    idle = metrics(learner=0.5, engine=0.4, requests=10)
    assert note(follow, asked, [idle] * PATIENCE_STEPS)[-1] == asked
    slow = metrics(learner=0.5, engine=0.02, requests=60)
    assert note(follow, asked, [slow] * PATIENCE_STEPS)[-1] == replace(asked, engines=3)


def test_a_recipe_without_upper_numbers_keeps_its_own() -> None:
    config = RunConfig.model_validate({"rollout": {"num_actors": 3, "max_actors": 5}})
    assert least_sizes(config) == ProcessCounts(rollouts=3, engines=1, simulators=1)
    assert most_sizes(config) == ProcessCounts(rollouts=5, engines=1, simulators=1)


@pytest.mark.parametrize(
    ("section", "low", "high"),
    [
        ("rollout", "num_actors", "max_actors"),
        ("engine", "num_engines", "max_engines"),
        ("simulator", "num_replicas", "max_replicas"),
    ],
)
def test_an_upper_number_below_the_first_is_refused(section: str, low: str, high: str) -> None:
    with pytest.raises(ValueError, match=f"{high}=1 is less than {low}=2"):
        RunConfig.model_validate({section: {low: 2, high: 1}})
