"""The driver checks other processes every few seconds while learners work: without Ray."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.workers.learner_rpc import TICK_EVERY_S, SilentLearnerError, ask


class Clock:
    """Seconds that pass only during a wait; a call is done at the second that it stands for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now_s = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(ray, "wait", self._wait)
        monkeypatch.setattr(ray, "get", lambda call: call)

    def _wait(self, calls: Sequence[float], *, timeout: float) -> tuple[list[float], list[float]]:
        first = min(calls)
        self.now_s = min(max(self.now_s, first), self.now_s + timeout)
        return ([first] if first <= self.now_s else []), []


def learners(*done_at_s: float) -> list[Any]:
    return [SimpleNamespace(apply=SimpleNamespace(remote=lambda work, at_s=at_s: at_s)) for at_s in done_at_s]


def test_a_long_call_ticks_every_five_seconds_and_a_short_one_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, ticks = Clock(monkeypatch), list[float]()

    def tick() -> None:
        ticks.append(clock.now_s)

    assert ask(learners(1.0, 2.0), lambda learner: None, timeout_s=60.0, tick=tick) == [1.0, 2.0]
    assert ticks == []
    long = ask(learners(14.0, 13.0), lambda learner: None, timeout_s=60.0, tick=tick)
    assert long == [14.0, 13.0]
    assert ticks == [2.0 + TICK_EVERY_S, 2.0 + 2 * TICK_EVERY_S]


def test_a_call_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(SilentLearnerError, match="learner 0 did not answer for 12 s"):
        ask(learners(100.0), lambda learner: None, timeout_s=12.0)
    assert clock.now_s == 12.0


def test_an_error_raised_by_a_tick_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def tick() -> None:
        raise RuntimeError("an engine died")

    with pytest.raises(RuntimeError, match="an engine died"):
        ask(learners(100.0), lambda learner: None, timeout_s=60.0, tick=tick)
    assert clock.now_s == TICK_EVERY_S
