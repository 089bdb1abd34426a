"""The meter of an engine's time, by hand, with a clock that the test sets."""

import pytest

from actors.engines.usage import EngineUsage, UsageMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_engine_is_idle_while_no_request_is_in_flight():
    clock = Clock()
    meter = UsageMeter(clock)
    clock.now += 2.0
    with meter.request():
        clock.now += 3.0
        with meter.request():
            clock.now += 1.0
    clock.now += 4.0
    assert meter.read() == EngineUsage(duration_s=10.0, idle_s=6.0, paused_s=0.0, request_s=5.0)


def test_a_pause_for_weights_is_counted_apart_from_what_is_in_flight():
    clock = Clock()
    meter = UsageMeter(clock)
    with meter.pause():
        clock.now += 1.0
        with meter.request():
            clock.now += 2.0
    assert meter.read() == EngineUsage(duration_s=3.0, idle_s=1.0, paused_s=3.0, request_s=2.0)


def test_a_reading_begins_the_next_one_and_ends_no_request():
    clock = Clock()
    meter = UsageMeter(clock)
    with meter.request():
        clock.now += 1.0
        meter.read()
        clock.now += 0.5
    clock.now += 0.5
    assert meter.read() == EngineUsage(duration_s=1.0, idle_s=0.5, paused_s=0.0, request_s=0.5)


def test_a_request_that_fails_and_a_pause_that_fails_are_over():
    clock = Clock()
    meter = UsageMeter(clock)
    for block in (meter.request, meter.pause):
        with pytest.raises(OSError, match="gone"), block():
            raise OSError("gone")
    clock.now += 1.0
    assert meter.read() == EngineUsage(duration_s=1.0, idle_s=1.0, paused_s=0.0, request_s=0.0)
