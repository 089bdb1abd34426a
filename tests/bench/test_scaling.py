"""Ratios of the scaling table, by hand."""

import pytest

from bench.driver_loop import Usage
from bench.scaling import _case, _usage_rows


def usage(rate: float) -> Usage:
    return Usage(
        wall_s=10.0, num_trajectories=int(10 * rate), driver_s=0.1, buffer_s=0.2, actors_s=4.0, busy=0.5
    )


def test_actors_are_compared_with_the_row_of_one_and_with_as_many_times_its_rate():
    one = _usage_rows(_case(1), [usage(20.0)] * 3, num_actors=1, one_actor=None)
    four = _usage_rows(_case(4), [usage(rate) for rate in (60.0, 72.0, 76.0)], num_actors=4, one_actor=20.0)
    rates = {row.metric: row for row in four}
    assert (rates["trajectories/s"].value, rates["trajectories/s"].ratio) == (72.0, 3.6)
    assert rates["trajectories/s"].ratio_to in {row.case for row in one} == {"1 actor"}
    share = rates["trajectories/s, share of linear"]
    assert (share.value, share.unit, share.runs) == (pytest.approx(90.0), "%", 3)
    assert [row for row in one if row.ratio is not None] == []
