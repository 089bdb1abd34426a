"""vLLM hangs where it has something to do and ends no step; what stands still on purpose does not hang."""

import subprocess
import sys
from pathlib import Path

from actors.engines.hang_detector import LONGEST_GAP_S, HangDetector

ROOT = Path(__file__).resolve().parent.parent.parent.parent


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_silence_counts_from_the_last_step_and_only_while_there_is_a_request() -> None:
    clock = Clock()
    pulse = HangDetector(clock=clock)
    clock.now = 100.0
    assert pulse.silent_s == 0.0
    with pulse.request():
        assert pulse.silent_s == 0.0, "it was idle until now"
        clock.now = 107.0
        with pulse.request():
            assert pulse.silent_s == 7.0, "a second request is no step"
        pulse.beat()
        clock.now = 109.0
        assert pulse.silent_s == 2.0
    assert pulse.silent_s == 0.0


def test_a_pause_is_no_silence_and_the_time_after_it_counts_anew() -> None:
    clock = Clock()
    pulse = HangDetector(clock=clock)
    with pulse.request():
        clock.now = 5.0
        with pulse.pause():
            clock.now = 500.0
            assert pulse.silent_s == 0.0
        clock.now = 503.0
        assert pulse.silent_s == 3.0


def test_vllm_that_uses_no_processor_stands_still_and_a_long_step_does_not() -> None:
    clock, work = Clock(), Clock()
    pulse = HangDetector(clock=clock, work=work)
    work.now = 500.0  # what its start took
    with pulse.request():
        for second in range(0, 31, 3):  # a long step
            clock.now, work.now = float(second), 500.0 + second
            assert pulse.still_s() == 0.0
        for second in range(33, 52, 3):  # then nothing, but for threads that wait
            clock.now, work.now = float(second), work.now + 0.01
            assert pulse.still_s() == second - 30.0
        work.now -= 40.0  # a child of it has ended
        assert pulse.still_s() == 0.0
        clock.now += 4.0
        assert pulse.still_s() == 4.0
        pulse.beat()
        assert pulse.still_s() == 0.0
        clock.now += 9.0
        with pulse.pause():
            assert pulse.still_s() == 0.0
    assert pulse.still_s() == 0.0, "nobody asks it for anything"


def test_what_nobody_has_looked_at_is_no_stillness() -> None:
    """The driver is away for long at times, and a machine may be frozen with all that runs on it."""
    clock = Clock()
    pulse = HangDetector(clock=clock, work=lambda: 500.0)
    with pulse.request():
        clock.now = 4.0
        assert pulse.still_s() == 0.0, "all that it has ever used counts as seen just now"
    clock.now = 100.0
    with pulse.request():
        clock.now = 104.0
        assert pulse.still_s() == 4.0, "it was idle until 4 s ago"
        clock.now = 140.0
        assert pulse.still_s() == 4.0 + LONGEST_GAP_S


WORK_OF_CHILDREN = """
import os, signal, subprocess, sys, time
from actors.engines.hang_detector import work_of_children

busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    deadline = time.monotonic() + 30
    while work_of_children() < 0.3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(busy.pid, signal.SIGSTOP)
    stopped = work_of_children()
    own_s = time.process_time()
    while time.process_time() < own_s + 0.3:
        pass
    print(stopped, work_of_children())
finally:
    busy.kill()
"""


def test_the_work_of_children_is_theirs_and_not_ones_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK_OF_CHILDREN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    stopped, later = map(float, done.stdout.split())
    assert stopped >= 0.3
    assert later - stopped < 0.1
