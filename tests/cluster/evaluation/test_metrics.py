"""Evaluation's numbers, computed by hand: the paper's rules, pass^k and pass@k, intervals over tasks."""

import math

import numpy as np
import pytest

from actors.trajectory import StopReason
from cluster.evaluation.metrics import (
    DialogueOutcome,
    effective_turns,
    interval,
    joined_interval,
    pass_at_k,
    pass_curves,
    pass_hat_k,
    published_score,
    task_means,
    time_weighted,
    travel_score,
)

NAN = math.nan


def outcome(
    rewards: list[float],
    *,
    gym: str = "turtle",
    task_id: str = "t",
    trial: int = 0,
    choices: list[str] | None = None,
    contents: list[str] | None = None,
    num_aspects: int = 1,
    stop_reason: StopReason = StopReason.TERMINATED,
) -> DialogueOutcome:
    """A dialogue with these turn rewards; NaN its score where the stop reason is a failure."""
    return DialogueOutcome(
        gym=gym,
        task_id=task_id,
        trial=trial,
        score=NAN if stop_reason.failed else sum(rewards),
        num_turns=len(rewards),
        rewards=tuple(rewards),
        choices=tuple(choices or ["action"] * len(rewards)),
        contents=tuple(contents or [""] * len(rewards)),
        num_aspects=num_aspects,
        stop_reason=stop_reason,
    )


def test_travel_takes_the_best_choice_of_each_letter_and_no_preference() -> None:
    # F: max(0, 1.0) = 1; H: max(0.8, 0) = 0.8; the preferences' 0.6 and the search's 0.2 do not count.
    # (1 + 0.8) / 3 aspects = 0.6
    played = outcome(
        [0.6, 0.2, 0.0, 1.0, 0.8, 0.0],
        gym="travel",
        choices=["action", "search", "answer", "answer", "answer", "answer"],
        contents=["Which cabin?", "flight", "F9", "[answer] F12", "h3", "H4"],
        num_aspects=3,
    )
    assert travel_score(played) == pytest.approx(0.6)
    assert published_score(played) == pytest.approx(0.6)


def test_travel_without_a_choice_is_zero_however_much_was_asked() -> None:
    asked = outcome([0.8] * 4, gym="travel", num_aspects=2)
    assert published_score(asked) == 0.0
    empty = outcome([0.5], gym="travel", choices=["answer"], contents=["  "])
    assert published_score(empty) == 0.0


def test_intention_is_summed_and_may_exceed_one() -> None:
    assert published_score(outcome([1.0, 0.0, 0.7, 0.4], gym="intention")) == pytest.approx(2.1)


def test_effective_turns_is_the_last_turn_with_a_reward() -> None:
    assert effective_turns(outcome([0.0, 0.3, 0.0, 0.7, 0.0])) == 4
    assert effective_turns(outcome([0.0, -0.1, 0.0])) == 2
    assert effective_turns(outcome([0.0, 0.0])) == 0
    assert effective_turns(outcome([])) == 0


def test_time_weighted_divides_each_reward_by_its_turn() -> None:
    # 0.3/2 + 0.7/4 = 0.15 + 0.175
    assert time_weighted(outcome([0.0, 0.3, 0.0, 0.7])) == pytest.approx(0.325)
    assert time_weighted(outcome([1.0])) == 1.0


@pytest.mark.parametrize(
    ("n", "c", "k", "hat", "at"),
    [
        (4, 2, 1, 1 / 2, 1 / 2),
        (4, 2, 2, 1 / 6, 5 / 6),  # C(2,2)/C(4,2) = 1/6; 1 - C(2,2)/C(4,2) = 5/6
        (4, 2, 3, 0.0, 1.0),
        (5, 4, 3, 4 / 10, 1.0),  # C(4,3)/C(5,3) = 4/10
        (5, 1, 3, 0.0, 6 / 10),  # 1 - C(4,3)/C(5,3) = 6/10
        (3, 3, 3, 1.0, 1.0),
        (3, 0, 2, 0.0, 0.0),
    ],
)
def test_pass_hat_k_and_pass_at_k(n: int, c: int, k: int, hat: float, at: float) -> None:
    assert pass_hat_k(n, c, k) == pytest.approx(hat)
    assert pass_at_k(n, c, k) == pytest.approx(at)


def test_pass_at_k_is_the_mean_over_all_draws_of_k_trials() -> None:
    rng = np.random.default_rng(0)
    trials = np.array([1, 0, 0, 1, 0, 0, 0])
    draws = np.array([rng.permutation(trials)[:3] for _ in range(20_000)])
    assert pass_at_k(7, 2, 3) == pytest.approx(draws.any(axis=1).mean(), abs=0.01)
    assert pass_hat_k(7, 2, 2) == pytest.approx((draws[:, :2].all(axis=1)).mean(), abs=0.01)


def test_k_beyond_the_trials_is_refused() -> None:
    for n, c, k in ((3, 1, 4), (3, 1, 0), (3, 4, 1)):
        with pytest.raises(ValueError, match="k must be 1 to the number of trials"):
            pass_at_k(n, c, k)


def test_pass_curves_leave_out_failures_and_tasks_with_too_few_trials() -> None:
    failed = StopReason.SIMULATOR_ERROR
    played = [
        *(outcome([score], task_id="a", trial=i) for i, score in enumerate((1.0, 1.0, 0.0))),
        outcome([0.995], task_id="b", trial=0),
        outcome([0.5], task_id="b", trial=1),
        outcome([1.0], task_id="b", trial=2, stop_reason=failed),
        *(outcome([1.0], task_id="c", trial=i, stop_reason=failed) for i in range(3)),
    ]
    hats, ats = pass_curves(played, num_trials=3, success_score=0.99)
    # k=1: (2/3 + 1/2) / 2; k=2: a 1/3, b 0 → 1/6; k=3: only a has three: 0
    assert hats == pytest.approx([7 / 12, 1 / 6, 0.0])
    assert ats == pytest.approx([7 / 12, 1.0, 1.0])
    assert math.isnan(pass_curves(played[-3:], num_trials=1, success_score=0.99)[0][0])


def test_a_task_counts_once_however_many_of_its_trials_failed() -> None:
    played = [
        outcome([1.0], task_id="a", trial=0),
        outcome([0.0], task_id="a", trial=1),
        outcome([1.0], task_id="b", trial=0),
        outcome([0.0], task_id="b", trial=1, stop_reason=StopReason.ENGINE_ERROR),
    ]
    assert task_means(played, lambda o: o.score).tolist() == [0.5, 1.0]


def test_the_interval_resamples_tasks_so_that_repeating_a_trial_narrows_nothing() -> None:
    scores = np.random.default_rng(3).uniform(size=40)
    once = [outcome([float(s)], task_id=str(i)) for i, s in enumerate(scores)]
    many = [outcome([float(s)], task_id=str(i), trial=t) for i, s in enumerate(scores) for t in range(8)]
    one, eight = (interval(task_means(played, lambda o: o.score), seed=5) for played in (once, many))
    assert one == pytest.approx(eight)
    half = 1.96 * scores.std() / math.sqrt(40)
    assert one == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.015)


def test_the_interval_is_seeded_and_of_nothing_is_nan() -> None:
    scores = np.array([0.1, 0.5, 0.9, 0.3])
    assert interval(scores, seed=1) == interval(scores, seed=1)
    assert all(math.isnan(end) for end in interval(np.array([]), seed=0))


def test_joined_interval_of_two_parts() -> None:
    # 0.75·0.4 + 0.25·0.8 = 0.5; below √((0.75·0.1)² + (0.25·0.2)²) = 0.0901388; above √(0.15² + 0.05²) =
    # 0.1581139
    low, high = joined_interval([0.4, 0.8], [(0.3, 0.6), (0.6, 1.0)], [0.75, 0.25])
    assert (low, high) == pytest.approx((0.5 - 0.0901388, 0.5 + 0.1581139), abs=1e-6)
