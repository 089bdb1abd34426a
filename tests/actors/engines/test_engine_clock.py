"""The engine's clock, by hand and at random, on times that the test sets: idle, paused and computed seconds,
and whether vLLM's core hangs."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engines.engine_clock import MAX_CHECK_GAP_S, MAX_PAUSES, EngineClock, EngineUsage

ROOT = Path(__file__).resolve().parent.parent.parent.parent


class Time:
    def __init__(self, seconds: float = 0.0) -> None:
        self.now = seconds

    def __call__(self) -> float:
        return self.now


def paused_at(*times: float) -> EngineClock:
    """With pauses from the first of these times to the second, from the third to the fourth, ..."""
    time = Time()
    clock = EngineClock(now=time)
    for begin, end in zip(times[::2], times[1::2], strict=True):
        time.now = begin
        with clock.pause():
            time.now = end
    return clock


def test_an_engine_is_idle_while_no_request_is_in_flight():
    time = Time(100.0)
    clock = EngineClock(now=time)
    time.now += 2.0
    with clock.request():
        time.now += 3.0
        with clock.request():
            time.now += 1.0
    time.now += 4.0
    assert clock.read_usage() == EngineUsage(duration_s=10.0, idle_s=6.0, paused_s=0.0, request_s=5.0)


def test_a_pause_for_weights_is_counted_apart_from_requests_in_flight():
    time = Time(100.0)
    clock = EngineClock(now=time)
    with clock.pause():
        time.now += 1.0
        with clock.request():
            time.now += 2.0
    assert clock.read_usage() == EngineUsage(duration_s=3.0, idle_s=1.0, paused_s=3.0, request_s=2.0)


def test_a_reading_begins_the_next_one_and_ends_no_request():
    time = Time(100.0)
    clock = EngineClock(now=time)
    with clock.request():
        time.now += 1.0
        clock.read_usage()
        time.now += 0.5
    time.now += 0.5
    assert clock.read_usage() == EngineUsage(duration_s=1.0, idle_s=0.5, paused_s=0.0, request_s=0.5)


def test_a_request_and_a_pause_that_raise_have_ended():
    time = Time(100.0)
    clock = EngineClock(now=time)
    for block in (clock.request, clock.pause, clock.core_call):
        with pytest.raises(OSError, match="gone"), block():
            raise OSError("gone")
    time.now += 1.0
    assert clock.read_usage() == EngineUsage(duration_s=1.0, idle_s=1.0, paused_s=0.0, request_s=0.0)
    assert clock.is_core_idle


def test_a_call_of_the_core_is_no_request():
    time = Time()
    clock = EngineClock(now=time)
    with clock.core_call():
        time.now += 1.0
    assert clock.read_usage() == EngineUsage(duration_s=1.0, idle_s=1.0, paused_s=0.0, request_s=0.0)


@pytest.mark.parametrize(
    ("begin", "end", "seconds"),
    [(0, 2, 2), (0, 4, 3), (0, 5, 3), (4, 6, 1), (3, 5, 0), (0, 12, 8), (6, 9, 3), (9, 12, 1), (4, 4, 0)],
)
def test_nothing_is_computed_in_a_pause(begin: float, end: float, seconds: float):
    assert paused_at(3, 5, 9, 11).computed_s(begin, end) == seconds


def test_the_latest_pause_is_the_one_that_ended_last():
    assert paused_at(3, 5, 9, 11).latest_pause == (9, 11)


def test_a_pause_that_raises_is_remembered():
    time = Time(1.0)
    clock = EngineClock(now=time)
    with pytest.raises(RuntimeError), clock.pause():
        time.now = 4.0
        raise RuntimeError("no weights")
    assert clock.computed_s(0, 6) == 3


def test_the_number_of_remembered_pauses_is_bounded():
    clock = paused_at(*range(4 * MAX_PAUSES))
    assert clock.computed_s(0, 4 * MAX_PAUSES) == 3 * MAX_PAUSES


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12), st.floats(0, 20), st.floats(0, 20))
def test_a_second_is_computed_or_paused(gaps: list[float], begin: float, length: float):
    times = list(itertools.accumulate(gaps))[: len(gaps) // 2 * 2]
    clock, end = paused_at(*times), begin + length
    paused = sum(
        max(0.0, min(end, last) - max(begin, first))
        for first, last in zip(times[::2], times[1::2], strict=True)
    )
    assert clock.computed_s(begin, end) == pytest.approx(length - paused, abs=1e-9)


def test_silence_counts_from_the_last_step_and_only_while_the_core_is_called() -> None:
    time = Time()
    clock = EngineClock(now=time)
    time.now = 100.0
    assert clock.silent_s == 0.0
    with clock.request():
        time.now = 200.0
        assert clock.silent_s == 0.0, "a request that waits for weights has not reached the core"
    with clock.core_call():
        assert clock.silent_s == 0.0, "it was idle until now"
        time.now = 207.0
        with clock.core_call():
            assert clock.silent_s == 7.0, "a second call is no step"
        clock.step()
        time.now = 209.0
        assert clock.silent_s == 2.0
    assert clock.silent_s == 0.0


def test_a_pause_is_no_silence_and_the_count_restarts_after_it() -> None:
    time = Time()
    clock = EngineClock(now=time)
    with clock.core_call():
        time.now = 5.0
        with clock.pause():
            time.now = 500.0
            assert clock.silent_s == 0.0
        time.now = 503.0
        assert clock.silent_s == 3.0


def test_a_core_that_uses_no_processor_is_stalled_and_a_long_step_is_not() -> None:
    time, cpu = Time(), Time()
    clock = EngineClock(now=time, cpu_seconds=cpu)
    cpu.now = 500.0  # what its start took
    with clock.core_call():
        for second in range(0, 31, 3):  # a long step
            time.now, cpu.now = float(second), 500.0 + second
            assert clock.check_stalled_s() == 0.0
        for second in range(33, 52, 3):  # then nothing, apart from threads that wait
            time.now, cpu.now = float(second), cpu.now + 0.01
            assert clock.check_stalled_s() == second - 30.0
        cpu.now -= 40.0  # a child of it has ended
        assert clock.check_stalled_s() == 0.0
        time.now += 4.0
        assert clock.check_stalled_s() == 4.0
        clock.step()
        assert clock.check_stalled_s() == 0.0
        time.now += 9.0
        with clock.pause():
            assert clock.check_stalled_s() == 0.0
    assert clock.check_stalled_s() == 0.0, "it has nothing to do"


def test_a_long_gap_between_two_checks_counts_as_a_short_one() -> None:
    """The driver does not check for long at times, and a machine may be frozen with all its processes."""
    time = Time()
    clock = EngineClock(now=time, cpu_seconds=lambda: 500.0)
    with clock.core_call():
        time.now = 4.0
        assert clock.check_stalled_s() == 0.0, "all that it has ever used counts as seen just now"
    time.now = 100.0
    with clock.core_call():
        time.now = 104.0
        assert clock.check_stalled_s() == 4.0, "it was idle until 4 s ago"
        time.now = 140.0
        assert clock.check_stalled_s() == 4.0 + MAX_CHECK_GAP_S


CPU_SECONDS = """
import os, signal, subprocess, sys, time
from actors.engines.engine_clock import cpu_seconds_of_children

busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    deadline = time.monotonic() + 30
    while cpu_seconds_of_children() < 0.3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(busy.pid, signal.SIGSTOP)
    stopped = cpu_seconds_of_children()
    own_s = time.process_time()
    while time.process_time() < own_s + 0.3:
        pass
    print(stopped, cpu_seconds_of_children())
finally:
    busy.kill()
"""


@pytest.mark.medium
def test_processor_time_is_that_of_the_children_without_the_process_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CPU_SECONDS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    stopped, later = map(float, done.stdout.split())
    assert stopped >= 0.3
    assert later - stopped < 0.1
