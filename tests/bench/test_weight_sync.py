"""How the benchmark of weight sync reads a pause out of the times of tokens."""

import math

from bench.weight_sync import gaps_around

PAUSE = (10.0, 14.0)


def test_the_gap_is_that_of_the_request_that_waited_longest_for_the_pause_to_end():
    stamps = [
        [7.0, 8.0, 9.5, 14.5, 15.5],  # its last token came before the pause,
        [7.0, 8.0, 10.5, 14.2, 15.2],  # and this one's when it had begun
    ]
    assert gaps_around(PAUSE, stamps=stamps) == (5.0, 1.0)


def test_a_gap_elsewhere_is_no_pause():
    stamps = [[0.0, 8.0, 9.0, 15.0, 16.0, 17.0, 37.0]]
    assert gaps_around(PAUSE, stamps=stamps) == (6.0, 1.0)


def test_between_two_requests_lies_no_gap():
    stamps = [[8.0, 9.0, math.nan, 20.0, 22.0, 24.0], [9.0, 15.0, 17.0]]
    assert gaps_around(PAUSE, stamps=stamps) == (6.0, 2.0)


def test_a_request_that_waits_for_its_first_token_has_no_gap_yet():
    assert gaps_around(PAUSE, stamps=[[], [3.0], [9.0, 15.0, 16.0]]) == (6.0, 1.0)
