"""How long a request was computed, by hand and at random, on a clock of our own."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engines.pause_log import MOST_PAUSES, PauseLog


def pauses_at(*times: float) -> PauseLog:
    """Pauses from the first of these times to the second, from the third to the fourth, ..."""
    clock = iter(times)
    pauses = PauseLog(clock=lambda: next(clock))
    for _ in range(len(times) // 2):
        with pauses.pause():
            pass
    return pauses


@pytest.mark.parametrize(
    ("begin", "end", "seconds"),
    [(0, 2, 2), (0, 4, 3), (0, 5, 3), (4, 6, 1), (3, 5, 0), (0, 12, 8), (6, 9, 3), (9, 12, 1), (4, 4, 0)],
)
def test_nothing_is_computed_in_a_pause(begin: float, end: float, seconds: float):
    assert pauses_at(3, 5, 9, 11).computed_s(begin, end) == seconds


def test_the_latest_pause_is_the_one_that_ended_last():
    assert pauses_at(3, 5, 9, 11).latest == (9, 11)


def test_a_pause_that_fails_is_one():
    clock = iter([1.0, 4.0])
    pauses = PauseLog(clock=lambda: next(clock))
    with pytest.raises(RuntimeError), pauses.pause():
        raise RuntimeError("no weights")
    assert pauses.computed_s(0, 6) == 3


def test_what_is_remembered_is_bounded():
    pauses = pauses_at(*range(4 * MOST_PAUSES))
    assert pauses.computed_s(0, 4 * MOST_PAUSES) == 3 * MOST_PAUSES


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12), st.floats(0, 20), st.floats(0, 20))
def test_a_second_is_computed_or_paused(gaps: list[float], begin: float, length: float):
    times = list(itertools.accumulate(gaps))[: len(gaps) // 2 * 2]
    pauses, end = pauses_at(*times), begin + length
    paused = sum(
        max(0.0, min(end, last) - max(begin, first))
        for first, last in zip(times[::2], times[1::2], strict=True)
    )
    assert pauses.computed_s(begin, end) == pytest.approx(length - paused, abs=1e-9)
