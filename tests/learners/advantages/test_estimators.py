"""Advantage estimators against numbers computed by hand, and their configuration."""

import statistics
from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.recipe import BadInput, validate
from cluster.config.run_config import RunConfig
from learners.advantages.config import ADVANTAGE_CONFIGS, SpreadConfig, TurnGaeConfig, UserRLConfig
from learners.advantages.estimators import ADVANTAGES, CreditRule
from learners.advantages.group_baseline import group_relative
from learners.advantages.turn_credit import (
    CREDITS,
    SCORES,
    USERRL_CREDITS,
    USERRL_SCORES,
    discounted_reward,
    total_reward,
)
from learners.config import LearnerConfig

NAN = float("nan")


def ragged(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


def test_score_is_the_true_sum():
    assert total_reward(np.array([0.25, 0.0, 0.5])) == 0.75


def test_reward_to_go_discounts_from_the_first_turn():
    assert discounted_reward(np.array([0.0, 0.0, 1.0]), gamma=0.5) == 0.25
    assert discounted_reward(np.array([1.0, 1.0, 1.0]), gamma=0.5) == 1.75


def test_grpo_divides_by_the_population_standard_deviation():
    """Scores 1, 0, 0, 0: mean 1/4, variance 3/16, so (3/4) / (sqrt(3)/4) = sqrt(3) and -1/sqrt(3)."""
    advantages = group_relative(np.array([1.0, 0.0, 0.0, 0.0]), divide_by_std=True)
    assert advantages == pytest.approx([3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)])


def test_dr_grpo_only_subtracts_the_mean():
    assert group_relative(np.array([1.0, 0.0, 0.0, 0.0]), divide_by_std=False).tolist() == [
        0.75,
        -0.25,
        -0.25,
        -0.25,
    ]


@pytest.mark.parametrize("scores", [[0.3, 0.3, 0.3], [0.7]])
def test_a_group_with_equal_scores_gives_zeros(scores: list[float]):
    assert group_relative(np.array(scores), divide_by_std=True).tolist() == [0.0] * len(scores)


def test_failed_trajectories_are_left_out_of_mean_and_deviation():
    """Without the failed one the scores are 1 and 0: mean 1/2, deviation 1/2."""
    advantages = group_relative(np.array([1.0, NAN, 0.0]), divide_by_std=True)
    assert np.array_equal(advantages, [1.0, NAN, -1.0], equal_nan=True)


def test_a_group_of_failed_trajectories_has_no_advantage():
    assert np.isnan(group_relative(np.array([NAN, NAN]), divide_by_std=True)).all()


def test_each_turn_gets_its_trajectorys_advantage():
    estimator = CreditRule(advantage="grpo", trajectory_score="sum", gamma=1.0).advantages
    advantages = estimator(ragged([0.0, 1.0], [0.0, 0.0, 0.0]))
    assert [row.tolist() for row in advantages] == [[1.0, 1.0], [-1.0, -1.0, -1.0]]


def test_reward_to_go_prefers_the_quicker_success():
    """Scores 1 and 0.5 at gamma 0.5: mean 3/4, deviation 1/4."""
    estimator = CreditRule(advantage="grpo", trajectory_score="reward_to_go", gamma=0.5).advantages
    quick, slow = estimator(ragged([1.0], [0.0, 1.0]))
    assert quick.tolist() == [1.0]
    assert slow.tolist() == [-1.0, -1.0]


def test_one_failed_turn_fails_only_its_own_trajectory():
    estimator = CreditRule(advantage="dr_grpo", trajectory_score="sum", gamma=1.0).advantages
    advantages = estimator(ragged([1.0, NAN], [1.0], [0.0]))
    assert np.isnan(advantages[0]).all()
    assert [advantages[1].tolist(), advantages[2].tolist()] == [[0.5], [-0.5]]


@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=16))
def test_advantages_sum_to_zero_and_are_bounded(scores: list[float]):
    advantages = group_relative(np.array(scores), divide_by_std=True)
    assert abs(advantages.sum()) < 1e-6
    assert np.abs(advantages).max() <= (len(scores) - 1) ** 0.5 + 1e-9


every_advantage = pytest.mark.parametrize("advantage", ADVANTAGES)


def estimate(advantage: str, rows: list[np.ndarray], *, credit: str = "equalized") -> list[np.ndarray]:
    """On turns of one token each, with the turn's index as its state, and critic values of 0."""
    estimator = CreditRule(
        advantage=advantage, trajectory_score="sum", turn_credit=credit, gamma=1.0
    ).advantages
    return estimator(
        rows,
        states=[[str(turn) for turn in range(len(row))] for row in rows],
        values=[np.zeros(len(row)) for row in rows],
    )


@pytest.mark.parametrize(
    ("kind", "field", "table"),
    [
        (SpreadConfig, "trajectory_score", SCORES),
        (SpreadConfig, "turn_credit", CREDITS),
        (UserRLConfig, "trajectory_score", USERRL_SCORES),
        (UserRLConfig, "turn_credit", USERRL_CREDITS),
    ],
)
def test_a_recipe_may_give_every_name_of_the_tables(kind: Any, field: str, table: Iterable[str]):
    assert set(get_args(kind.model_fields[field].annotation)) == set(table)


def test_the_types_that_a_recipe_may_name_are_those_of_the_table_and_custom():
    assert ADVANTAGE_CONFIGS.keys() == ADVANTAGES.keys() | {"custom"}
    for name, estimator in ADVANTAGES.items():
        assert ("turn_credit" in ADVANTAGE_CONFIGS[name].model_fields) == estimator.spreads


@every_advantage
def test_a_bare_name_stands_for_the_estimator_with_its_defaults(advantage: str):
    rule = LearnerConfig.model_validate({"advantage": advantage}).credit_of("")
    assert rule == CreditRule(
        advantage=advantage, trajectory_score="reward_to_go", turn_credit="equalized", gamma=0.95
    )


@every_advantage
def test_an_empty_group_has_no_advantages(advantage: str):
    assert estimate(advantage, []) == []


@every_advantage
def test_a_failed_trajectory_is_nan_and_changes_no_other(advantage: str):
    alone = estimate(advantage, ragged([0.0, 1.0], [0.0, 0.25]))
    with_failed = estimate(advantage, ragged([0.0, 1.0], [NAN, 7.0, 1.0], [0.0, 0.25], [float("inf")]))
    assert np.isnan(with_failed[1]).all()
    assert np.isnan(with_failed[3]).all()
    assert with_failed[1].shape == (3,)
    assert [with_failed[0].tolist(), with_failed[2].tolist()] == [row.tolist() for row in alone]


@every_advantage
def test_every_estimator_gives_nan_for_a_group_of_failed_trajectories(advantage: str):
    assert np.isnan(np.concatenate(estimate(advantage, ragged([NAN], [NAN, 0.0])))).all()


COMPARES_TRAJECTORIES = [
    name for name in ADVANTAGES if not name.startswith("userrl_") and name not in ("igpo", "turn_gae")
]
"""The other estimators give advantages without a peer, or within a trajectory."""


@pytest.mark.parametrize("advantage", COMPARES_TRAJECTORIES)
@pytest.mark.parametrize(
    "rows", [ragged([0.1, 0.7]), ragged([0.1, 0.7], [0.1, 0.7], [0.1, 0.7])], ids=["one", "equal"]
)
def test_a_group_without_differences_gives_zeros(advantage: str, rows: list[np.ndarray]):
    assert not np.concatenate(estimate(advantage, rows)).any()


@every_advantage
def test_a_trajectory_without_turns_has_no_advantage_and_changes_no_other(advantage: str):
    advantages = estimate(advantage, ragged([], [0.0, 1.0], [0.5]))
    assert [len(row) for row in advantages] == [0, 2, 1]
    assert np.isfinite(np.concatenate(advantages)).all()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo"])
def test_any_score_goes_with_any_credit(advantage: str, score: str, credit: str):
    """Credit moves the advantage between turns; its mean over the tokens that have credit stays."""
    estimator = CreditRule(
        advantage=advantage, trajectory_score=score, turn_credit=credit, gamma=0.5
    ).advantages
    even = CreditRule(advantage=advantage, trajectory_score=score, gamma=0.5).advantages
    rows, lengths = ragged([0.0, 0.25, 1.0], [0.5, 0.125]), [np.array([3, 1, 2]), np.array([4, 2])]
    advantages = estimator(rows, num_tokens=lengths)
    for row, values, num_tokens, of_trajectory in zip(rows, advantages, lengths, even(rows), strict=True):
        has_credit = CREDITS[credit](row, 0.5) != 0
        assert values @ num_tokens / num_tokens[has_credit].sum() == pytest.approx(of_trajectory[0])


def test_the_printed_equation_by_hand():
    """Scores 1 and 0: mean and deviation 1/2; credits 0, 1 and 0 give -1, 1 and -1, but for the epsilon."""
    first, second = estimate("userrl_printed", ragged([0.0, 1.0], [0.0]), credit="naive")
    assert first == pytest.approx([-1.0, 1.0], abs=1e-5)
    assert second == pytest.approx([-1.0], abs=1e-5)


PAIRS = [(score, credit) for score in SCORES for credit in CREDITS]


@pytest.mark.parametrize(("score", "credit"), PAIRS)
def test_any_pair_can_be_set_for_one_gym(score: str, credit: str):
    """Two gyms of a recipe, each with its own pair: A c_t N / sum of c over tokens, in plain arithmetic."""
    config = LearnerConfig.model_validate(
        {"advantage": {"gamma": 0.5}, "by_gym": {"tau": {"trajectory_score": score, "turn_credit": credit}}}
    )
    rows, lengths = ragged([0.0, 0.25, 1.0], [0.5, 0.125], [0.0]), [[3, 1, 2], [4, 2], [5]]
    for gym, (own_score, own_credit) in (("tau", (score, credit)), ("travel", ("reward_to_go", "equalized"))):
        estimator = config.credit_of(gym).advantages
        found = estimator(rows, num_tokens=[np.array(n) for n in lengths])
        scores = [SCORES[own_score](row, 0.5) for row in rows]
        mean, std = statistics.fmean(scores), statistics.pstdev(scores)
        for row, num_tokens, value, values in zip(rows, lengths, scores, found, strict=True):
            weights = CREDITS[own_credit](row, 0.5).tolist()
            total = sum(w * n for w, n in zip(weights, num_tokens, strict=True))
            kept = sum(n for w, n in zip(weights, num_tokens, strict=True) if w)
            z = (value - mean) / std
            assert values == pytest.approx([z * w * kept / total if total else 0.0 for w in weights])


def test_a_gym_may_have_its_own_credit():
    own = {"trajectory_score": "last", "gamma": 0.5}
    config = LearnerConfig.model_validate({"by_gym": {"tau": own}, "advantage": "rloo"})
    assert config.credit_of("tau") == CreditRule(
        advantage="rloo", trajectory_score="last", turn_credit="equalized", gamma=0.5
    )
    assert config.credit_of("travel") == CreditRule(
        advantage="rloo", trajectory_score="reward_to_go", turn_credit="equalized", gamma=0.95
    )


def test_a_gyms_own_estimator_takes_the_keys_that_both_have_from_the_shared_one():
    settings = {
        "advantage": {"turn_credit": "naive", "gamma": 0.5},
        "by_gym": {"tau": "turn_gae", "travel": {"type": "rloo"}},
    }
    config = LearnerConfig.model_validate(settings)
    assert config.by_gym["tau"] == TurnGaeConfig(gamma=0.5)
    assert config.by_gym["travel"] == SpreadConfig(type="rloo", turn_credit="naive", gamma=0.5)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"advantage": {"type": "turn_loo", "turn_credit": "naive"}},
            "learner.advantage.turn_credit: type=turn_loo has no such key: its keys are: gamma",
        ),
        (
            {"advantage": {"type": "userrl_compat", "turn_credit": "naive"}},
            "learner.advantage.turn_credit='naive': must be 'equalized', 'reward_to_go' or 'exponential'",
        ),
        (
            {"advantage": "userrl_compat", "by_gym": {"tau": {"trajectory_score": "max"}}},
            "learner.by_gym.tau.trajectory_score='max': must be 'sum' or 'reward_to_go'",
        ),
    ],
)
def test_keys_that_the_type_does_not_have_are_refused_in_one_line(settings: dict[str, object], line: str):
    with pytest.raises(BadInput, match=line):
        validate({"learner": settings}, model=RunConfig)


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "mt_grpo", "gigpo", "igpo"])
def test_an_overflowing_spread_gives_no_zero_advantage(advantage: str):
    values = np.concatenate(estimate(advantage, ragged([1e200], [-1e200], [1e308])))
    assert not (values == 0.0).any()
