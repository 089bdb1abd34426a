"""vLLM hangs where it has something to do and ends no step; what stands still on purpose does not hang."""

from actors.engine_pulse import Pulse


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_silence_counts_from_the_last_step_and_only_while_there_is_a_request() -> None:
    clock = Clock()
    pulse = Pulse(clock=clock)
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
    pulse = Pulse(clock=clock)
    with pulse.request():
        clock.now = 5.0
        with pulse.pause():
            clock.now = 500.0
            assert pulse.silent_s == 0.0
        clock.now = 503.0
        assert pulse.silent_s == 3.0
