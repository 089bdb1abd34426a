"""Four flaws of the released credit, each shown for any discount and both scores, and the absence of each in
the additive estimators."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.advantages.estimators import CreditRule
from learners.advantages.turn_credit import USERRL_SCORES
from tests.effort import examples

GAMMAS = (0.5, 0.8, 1.0)
RELEASED = {
    f"{score}-{gamma}": (
        CreditRule(
            advantage="userrl_compat", trajectory_score=score, turn_credit="reward_to_go", gamma=gamma
        ),
        gamma,
    )
    for score in USERRL_SCORES
    for gamma in GAMMAS
}
CORRECTED = {
    f"{name}-{gamma}": (CreditRule(advantage=name, trajectory_score="sum", gamma=gamma), gamma)
    for name in ("turn_mean", "turn_loo")
    for gamma in GAMMAS
}
released = pytest.mark.parametrize(("rule", "gamma"), RELEASED.values(), ids=RELEASED)
corrected = pytest.mark.parametrize(("rule", "gamma"), CORRECTED.values(), ids=CORRECTED)
TENTHS = st.integers(0, 10).map(lambda x: x / 10)
ROW = st.lists(TENTHS, min_size=1, max_size=6)
GROUP = st.lists(ROW, min_size=1, max_size=5)
quick = settings(deadline=None, max_examples=examples(30))


def advantages(rule: CreditRule, rows: list[list[float]]) -> list[np.ndarray]:
    return rule.advantages([np.array(row, float) for row in rows])


@released
@quick
@given(peers=GROUP, num_turns=st.integers(1, 6))
def test_a_released_total_failures_never_get_negative_advantages(
    rule: CreditRule, gamma: float, peers: list[list[float]], num_turns: int
):
    assert not advantages(rule, [[0.0] * num_turns, *peers])[0].any()


@corrected
@quick
@given(peers=GROUP, num_turns=st.integers(1, 6))
def test_a_corrected_total_failures_get_negative_advantages_if_peers_earn(
    rule: CreditRule, gamma: float, peers: list[list[float]], num_turns: int
):
    failure = advantages(rule, [[0.0] * num_turns, *peers])[0]
    assert (failure <= 0).all()
    assert (failure[0] < 0) == any(sum(row) > 0 for row in peers)


@released
@quick
@given(peers=GROUP, row=ROW, num_trailing=st.integers(1, 4))
def test_b_released_turns_after_the_last_reward_get_nothing(
    rule: CreditRule, gamma: float, peers: list[list[float]], row: list[float], num_trailing: int
):
    assert not advantages(rule, [[*row, *[0.0] * num_trailing], *peers])[0][len(row) :].any()


@corrected
@quick
@given(peers=GROUP, row=ROW, num_trailing=st.integers(1, 4))
def test_b_corrected_useless_turns_get_negative_advantages_if_a_peer_still_earns(
    rule: CreditRule, gamma: float, peers: list[list[float]], row: list[float], num_trailing: int
):
    earning = [0.0] * (len(row) + num_trailing) + [1.0]
    trailing = advantages(rule, [[*row, *[0.0] * num_trailing], earning, *peers])[0][len(row) :]
    assert (trailing < 0).all()


@released
@quick
@given(row=ROW.filter(any))
def test_c_released_below_the_mean_the_turn_with_the_largest_reward_to_go_is_punished_most(
    rule: CreditRule, gamma: float, row: list[float]
):
    own = advantages(rule, [row, [reward + 1 for reward in row]])[0]
    assert own[int(np.argmax(rewards_to_go(row, gamma=gamma)))] == own.min() < 0


@pytest.mark.parametrize("score", USERRL_SCORES)
@quick
@given(row=ROW.filter(any))
def test_c_released_the_exponential_map_has_the_same_flaw(score: str, row: list[float]):
    rule = CreditRule(advantage="userrl_compat", trajectory_score=score, turn_credit="exponential", gamma=0.8)
    own = advantages(rule, [row, [reward + 1 for reward in row]])[0]
    assert own[int(np.argmax(row))] == own.min() < 0


def rewards_to_go(row: list[float], *, gamma: float) -> list[float]:
    return [sum(gamma**k * reward for k, reward in enumerate(row[turn:])) for turn in range(len(row))]


@corrected
@quick
@given(group=GROUP, row=ROW, at=st.integers(0, 5), gain=st.floats(0.1, 1))
def test_c_corrected_more_reward_never_lowers_an_advantage(
    rule: CreditRule, gamma: float, group: list[list[float]], row: list[float], at: int, gain: float
):
    at = min(at, len(row) - 1)
    richer = [reward + gain * (turn == at) for turn, reward in enumerate(row)]
    before, after = (advantages(rule, [own, *group])[0] for own in (row, richer))
    assert (after >= before - 1e-7).all()
    assert after[0] > before[0]


@released
@quick
@given(epsilon=st.floats(1e-3, 0.1), sign=st.sampled_from([-1, 1]))
def test_d_released_mixed_signs_explode_and_flip(rule: CreditRule, gamma: float, epsilon: float, sign: int):
    """Credits of (-1, x) sum to (1 + gamma) x - 1: at x = (1 + sign epsilon) / (1 + gamma) that is almost
    zero, and the advantages grow as 1 / epsilon and change sign with it."""
    mixed = [-1.0, (1 + sign * epsilon) / (1 + gamma)]
    peer = [1.0, 1.0]  # a higher score, so that z is -1 / sqrt(2)
    last = advantages(rule, [mixed, peer])[0][1]
    assert abs(last) > 0.6 / epsilon
    assert (last < 0) == (sign > 0)


@corrected
@quick
@given(group=st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=6), min_size=2, max_size=6))
def test_d_corrected_advantages_are_bounded_by_the_rewards(
    rule: CreditRule, gamma: float, group: list[list[float]]
):
    most = max(abs(credit) for row in group for credit in rewards_to_go(row, gamma=gamma))
    for row in advantages(rule, group):
        assert (np.abs(row) <= 2 * most + 1e-9).all()


@pytest.mark.parametrize("make", [lambda g: g, lambda g: g[::-1]])
def test_order_of_trajectories_does_not_matter(make: Callable[[list], list]):
    group = [[0.0, 1.0], [0.5], [0.0, 0.0, 0.0]]
    for rule, _ in (*RELEASED.values(), *CORRECTED.values()):
        straight, turned = advantages(rule, group), make(advantages(rule, make(group)))
        assert np.concatenate(straight) == pytest.approx(np.concatenate(turned))
