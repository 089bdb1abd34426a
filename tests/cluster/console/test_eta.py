"""The time that is left, by hand-computed numbers."""

import pytest

from cluster.console.eta import EtaEstimator, RunClock, short_time


def test_what_is_left_takes_as_long_as_the_newer_half_of_the_time_says() -> None:
    pace = EtaEstimator(total=10, at=0.0)
    assert pace.left_s(0.0) is None
    pace.advance(1, at=10.0)
    assert pace.left_s(10.0) == 90.0  # one in ten seconds
    pace.advance(1, at=20.0)
    assert pace.left_s(20.0) == 80.0


def test_a_slow_beginning_is_forgotten() -> None:
    pace = EtaEstimator(total=100, at=0.0)
    pace.advance(1, at=50.0)
    for second in range(51, 101):
        pace.advance(1, at=float(second))
    assert (pace.done, pace.left_s(100.0)) == (51, 49.0)  # 50 in the newer 50 s


def test_nothing_is_left_of_what_is_done_and_nobody_knows_where_nothing_moves() -> None:
    pace = EtaEstimator(total=2, at=0.0)
    pace.advance(1, at=1.0)
    assert pace.left_s(100.0) is None  # nothing in the newer half
    pace.advance(1, at=101.0)
    assert pace.left_s(101.0) == 0.0


def test_the_moments_that_are_kept_do_not_grow_with_the_parts() -> None:
    pace = EtaEstimator(total=1e6, at=0.0)
    for part in range(100_000):
        pace.advance(1, at=part / 10)
    assert len(pace._moments) < 100
    assert pace.left_s(10_000.0) == pytest.approx(90_000, rel=0.02)


def test_a_run_takes_its_steps_and_the_evaluation_after_them() -> None:
    clock = RunClock(num_steps=10)
    clock.stage_over("evaluate sft", elapsed_s=30.0)
    clock.stage_over("evaluate validation-00001", elapsed_s=5.0)  # comes between steps: their time has it
    assert clock.step_over(1, at=100.0) is None
    assert clock.step_over(2, at=110.0) == 8 * 10 + 30
    assert clock.step_over(2, at=500.0) is None  # taken again after a fault
    assert clock.step_over(3, at=520.0) == 7 * 20 + 30


def test_a_short_time_has_two_units_at_most() -> None:
    times = (0.4, 45.0, 200.0, 7500.0, 273_600.0)
    assert [short_time(seconds) for seconds in times] == ["0s", "45s", "3m 20s", "2h 05m", "3d 04h"]
