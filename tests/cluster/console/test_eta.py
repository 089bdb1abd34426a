"""Estimate of the remaining time, by hand-computed numbers."""

import pytest

from cluster.console.eta import EtaEstimator, RunClock, short_time


def test_the_estimate_uses_the_speed_of_the_newer_half_of_the_time() -> None:
    estimator = EtaEstimator(total=10, at=0.0)
    assert estimator.left_s(0.0) is None
    estimator.advance(1, at=10.0)
    assert estimator.left_s(10.0) == 90.0  # one in ten seconds
    estimator.advance(1, at=20.0)
    assert estimator.left_s(20.0) == 80.0


def test_a_slow_start_does_not_count() -> None:
    estimator = EtaEstimator(total=100, at=0.0)
    estimator.advance(1, at=50.0)
    for second in range(51, 101):
        estimator.advance(1, at=float(second))
    assert (estimator.done, estimator.left_s(100.0)) == (51, 49.0)  # 50 in the newer 50 s


def test_finished_work_has_nothing_left_and_stalled_work_has_no_estimate() -> None:
    estimator = EtaEstimator(total=2, at=0.0)
    estimator.advance(1, at=1.0)
    assert estimator.left_s(100.0) is None  # nothing in the newer half
    estimator.advance(1, at=101.0)
    assert estimator.left_s(101.0) == 0.0


def test_the_number_of_samples_does_not_grow_with_the_number_of_parts() -> None:
    estimator = EtaEstimator(total=1e6, at=0.0)
    for part in range(100_000):
        estimator.advance(1, at=part / 10)
    assert len(estimator._samples) < 100
    assert estimator.left_s(10_000.0) == pytest.approx(90_000, rel=0.02)


def test_the_time_of_a_run_is_its_steps_and_the_evaluation_after_them() -> None:
    clock = RunClock(num_steps=10)
    clock.finish_stage("evaluate sft", elapsed_s=30.0)
    clock.finish_stage(
        "evaluate validation-00001", elapsed_s=5.0
    )  # runs between steps: counted in their time
    assert clock.finish_step(1, at=100.0) is None
    assert clock.finish_step(2, at=110.0) == 8 * 10 + 30
    assert clock.finish_step(2, at=500.0) is None  # repeated after a fault
    assert clock.finish_step(3, at=520.0) == 7 * 20 + 30


def test_a_short_time_has_two_units_at_most() -> None:
    times = (0.4, 45.0, 200.0, 7500.0, 273_600.0)
    assert [short_time(seconds) for seconds in times] == ["0s", "45s", "3m 20s", "2h 05m", "3d 04h"]
