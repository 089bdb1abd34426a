"""The arithmetic of the benchmark of asynchrony, on steps made by hand."""

import math

import pytest

from bench.asynchrony import WINDOW, Case, Outcome, rows_of
from bench.short_trainings import Step

assert WINDOW == 4


def outcome(rewards: list[float], *, step_s: float, idle: float = 0.0) -> Outcome:
    """Steps that take equally long and train 10 trajectories each."""
    steps = [
        Step(
            ended_s=step_s * (index + 1),
            metrics={
                "ledger/trained": 10.0 * (index + 1),
                "time/step_s": step_s,
                "rollout/reward/mean": reward,
                "learner/idle/share": idle,
                "engine/idle/share": 0.0,
                "buffer/age/max": float(index % 3),
            },
        )
        for index, reward in enumerate(rewards)
    ]
    return Outcome(steps=steps, warm_up=4, held_out=(0.5, 0.4, 0.6))


def test_the_rate_leaves_the_warm_up_out():
    steps = list(outcome([0.0] * 6, step_s=2.0).steps)
    steps[0] = Step(ended_s=100.0, metrics=steps[0].metrics)
    late = Outcome(steps=steps, warm_up=4, held_out=None)
    # steps 5 and 6: 20 trajectories between 8 s and 12 s
    assert late.rate == pytest.approx(5.0)


def test_idle_shares_are_weighed_by_the_length_of_their_steps():
    steps = list(outcome([0.0] * 6, step_s=1.0).steps)
    steps[5] = Step(ended_s=8.0, metrics={**steps[5].metrics, "time/step_s": 3.0, "learner/idle/share": 0.8})
    assert Outcome(steps=steps, warm_up=4, held_out=None).mean("learner/idle/share") == pytest.approx(0.6)


def test_seconds_to_a_reward_end_with_the_first_window_that_reaches_it():
    rising = outcome([0.0, 0.0, 0.4, 0.4, 0.4, 0.4, 1.0], step_s=3.0)
    # windows of four end at steps 4 to 7: 0.2, 0.3, 0.4, 0.55
    assert rising.rewards() == pytest.approx([0.2, 0.3, 0.4, 0.55])
    assert rising.seconds_to(0.2) == 12.0
    assert rising.seconds_to(0.35) == 18.0
    assert rising.seconds_to(0.9) == math.inf


def test_a_reward_that_is_not_reached_has_no_time_and_no_merit():
    case = Case(delay_s=0.2, max_off_policy_steps=5, sync_steps=6, async_steps=6, is_scored=True)
    slow = outcome([0.1, 0.1, 0.1, 0.3, 0.5, 0.5], step_s=4.0)
    flat = outcome([0.1] * 6, step_s=1.0)
    rows = {row.metric: row for row in rows_of(case, sync=[slow], asynchronous=[flat]) if row.ratio_to}
    missed = rows["time to the same reward: most runs took longer than"]
    assert (missed.value, missed.ratio) == (6.0, 0.0)
    assert "time to the same reward" not in rows


def test_rows_compare_both_modes_run_by_run():
    case = Case(delay_s=0.2, max_off_policy_steps=5, sync_steps=6, async_steps=6, is_scored=True)
    rewards = [0.1, 0.1, 0.1, 0.3, 0.5, 0.5]
    slow = [outcome(rewards, step_s=4.0), outcome(rewards, step_s=6.0)]
    quick = [outcome(rewards, step_s=1.0, idle=0.07), outcome(rewards, step_s=1.0, idle=0.05)]
    rows = {(row.case, row.metric): row for row in rows_of(case, sync=slow, asynchronous=quick)}
    ours, theirs = "users of 200 ms, max_off_policy_steps=5", "users of 200 ms, synchronous"
    rate = rows[ours, "trained trajectories"]
    assert (rate.value, rate.ratio, rate.ratio_to, rate.runs) == (10.0, 5.0, theirs, 2)
    assert rows[theirs, "trained trajectories"].ratio is None
    seconds = rows[ours, "time to the same reward"]
    # windows of 0.15, 0.25, 0.35: 0.15 + 0.8 x 0.2 is reached at step 6 alone
    assert (seconds.value, seconds.ratio) == (6.0, 5.0)
    assert rows[theirs, "time to the same reward"].value == 30.0
    assert rows[ours, "learner idle"].value == pytest.approx(6.0)
    assert rows[ours, "its 95 % interval, half"].value == pytest.approx(0.1)
    assert rows[ours, "oldest token trained"].value == 2.0
