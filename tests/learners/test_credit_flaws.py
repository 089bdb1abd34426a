"""Four flaws of the released credit, each as a law that holds for it, and as its opposite for the additive
estimators."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.advantage import Estimator, make_estimator

RELEASED = make_estimator(
    "userrl_compat", trajectory_score="reward_to_go", turn_credit="reward_to_go", gamma=0.8
)
CORRECTED = {
    name: make_estimator(name, trajectory_score="sum", gamma=0.8) for name in ("turn_mean", "turn_loo")
}
corrected = pytest.mark.parametrize("estimator", CORRECTED.values(), ids=CORRECTED)
TENTHS = st.integers(0, 10).map(lambda x: x / 10)
ROW = st.lists(TENTHS, min_size=1, max_size=6)
GROUP = st.lists(ROW, min_size=1, max_size=5)
quick = settings(deadline=None, max_examples=60)


def advantages(estimator: Estimator, rows: list[list[float]]) -> list[np.ndarray]:
    return estimator([np.array(row, float) for row in rows])


@quick
@given(peers=GROUP, num_turns=st.integers(1, 6))
def test_a_released_total_failures_are_never_pushed_down(peers: list[list[float]], num_turns: int):
    assert not advantages(RELEASED, [[0.0] * num_turns, *peers])[0].any()


@corrected
@quick
@given(peers=GROUP, num_turns=st.integers(1, 6))
def test_a_corrected_total_failures_are_pushed_down_where_peers_earn(
    estimator: Estimator, peers: list[list[float]], num_turns: int
):
    failure = advantages(estimator, [[0.0] * num_turns, *peers])[0]
    assert (failure <= 0).all()
    assert (failure[0] < 0) == any(sum(row) > 0 for row in peers)


@quick
@given(peers=GROUP, row=ROW, num_trailing=st.integers(1, 4))
def test_b_released_turns_after_the_last_reward_get_nothing(
    peers: list[list[float]], row: list[float], num_trailing: int
):
    assert not advantages(RELEASED, [[*row, *[0.0] * num_trailing], *peers])[0][len(row) :].any()


@corrected
@quick
@given(peers=GROUP, row=ROW, num_trailing=st.integers(1, 4))
def test_b_corrected_useless_turns_are_pushed_down_where_a_peer_still_earns(
    estimator: Estimator, peers: list[list[float]], row: list[float], num_trailing: int
):
    earning = [0.0] * (len(row) + num_trailing) + [1.0]
    trailing = advantages(estimator, [[*row, *[0.0] * num_trailing], earning, *peers])[0][len(row) :]
    assert (trailing < 0).all()


@quick
@given(row=ROW.filter(any))
def test_c_released_below_the_mean_the_turn_that_earned_most_is_punished_most(row: list[float]):
    better = [reward + 1 for reward in row]
    own = advantages(RELEASED, [row, better])[0]
    credits = make_credits(row)
    assert own[int(np.argmax(credits))] == own.min() < 0


def make_credits(row: list[float]) -> list[float]:
    return [sum(0.8**k * reward for k, reward in enumerate(row[turn:])) for turn in range(len(row))]


@corrected
@quick
@given(group=GROUP, row=ROW, at=st.integers(0, 5), gain=st.floats(0.1, 1))
def test_c_corrected_more_reward_never_lowers_an_advantage(
    estimator: Estimator, group: list[list[float]], row: list[float], at: int, gain: float
):
    at = min(at, len(row) - 1)
    richer = [reward + gain * (turn == at) for turn, reward in enumerate(row)]
    before, after = (advantages(estimator, [own, *group])[0] for own in (row, richer))
    assert (after >= before - 1e-7).all()
    assert after[0] > before[0]


@quick
@given(epsilon=st.floats(1e-3, 0.1), sign=st.sampled_from([-1, 1]))
def test_d_released_mixed_signs_explode_and_flip(epsilon: float, sign: int):
    """Credits of (-1, x) sum to 1.8 x - 1: at x = (1 + epsilon) / 1.8 that is epsilon, and A grows as 1 /
    epsilon with its sign."""
    mixed = [-1.0, (1 + sign * epsilon) / 1.8]
    last = advantages(RELEASED, [mixed, [0.0, 0.0]])[0][1]
    assert abs(last) > 0.6 / epsilon
    assert (last < 0) == (sign > 0)


@corrected
@quick
@given(group=st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=6), min_size=2, max_size=6))
def test_d_corrected_advantages_are_bounded_by_the_rewards(estimator: Estimator, group: list[list[float]]):
    most = max(abs(credit) for row in group for credit in make_credits(row))
    for row in advantages(estimator, group):
        assert (np.abs(row) <= 2 * most + 1e-9).all()


@pytest.mark.parametrize("make", [lambda g: g, lambda g: g[::-1]])
def test_order_of_trajectories_does_not_matter(make: Callable[[list], list]):
    group = [[0.0, 1.0], [0.5], [0.0, 0.0, 0.0]]
    for estimator in (RELEASED, *CORRECTED.values()):
        straight, turned = advantages(estimator, group), make(advantages(estimator, make(group)))
        assert np.concatenate(straight) == pytest.approx(np.concatenate(turned))
