"""The adaptive entropy coefficient against numbers computed by hand, and its convergence."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.losses.entropy import COEFFICIENT_STEP, EntropyControl


def test_the_coefficient_rises_below_the_target_and_is_not_used_above_it():
    control = EntropyControl(coefficient=0.01)
    assert control.next_coefficient(target=0.3) == 0.01
    low = control.updated(0.2, target=0.3)
    assert low.coefficient == pytest.approx(0.015)
    assert low.next_coefficient(target=0.3) == low.coefficient
    high = low.updated(0.4, target=0.3)
    assert high.coefficient == pytest.approx(0.01)
    assert high.next_coefficient(target=0.3) == 0.0


def test_a_step_with_bad_numbers_changes_nothing():
    control = EntropyControl(coefficient=0.01, last_entropy=0.2)
    assert control.updated(math.nan, target=0.3) == control
    assert control.updated(math.inf, target=0.3) == control


@given(st.lists(st.floats(0, 5), max_size=50), st.floats(0, 1))
def test_the_coefficient_is_never_negative_and_moves_by_one_step(entropies: list[float], target: float):
    control = EntropyControl()
    for entropy in entropies:
        moved = control.updated(entropy, target=target)
        assert moved.coefficient >= 0
        assert abs(moved.coefficient - control.coefficient) <= COEFFICIENT_STEP + 1e-12
        control = moved


def test_a_collapsing_entropy_is_kept_near_its_target():
    """A policy that loses 0.02 nats a step and gains its coefficient."""
    control, entropy, seen = EntropyControl(), 1.0, []
    for _ in range(600):
        entropy = max(0.0, entropy - 0.02 + control.next_coefficient(target=0.3))
        control = control.updated(entropy, target=0.3)
        seen.append(entropy)
    assert sum(seen[-200:]) / 200 == pytest.approx(0.3, abs=0.1)
    assert min(seen[-200:]) > 0.1
