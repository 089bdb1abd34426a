"""While learners work the driver looks at other things, now and then: without Ray."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.workers.learner_rpc import MEANWHILE_EVERY_S, SilentLearnerError, ask


class Clock:
    """Seconds that pass only while somebody waits; calls are done at the second that they stand for."""

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


def test_a_long_call_leaves_time_for_other_things_and_a_short_one_is_not_held_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, looks = Clock(monkeypatch), list[float]()

    def look() -> None:
        looks.append(clock.now_s)

    assert ask(learners(1.0, 2.0), lambda learner: None, timeout_s=60.0, meanwhile=look) == [1.0, 2.0]
    assert looks == []
    long = ask(learners(14.0, 13.0), lambda learner: None, timeout_s=60.0, meanwhile=look)
    assert long == [14.0, 13.0]
    assert looks == [2.0 + MEANWHILE_EVERY_S, 2.0 + 2 * MEANWHILE_EVERY_S]


def test_looking_at_other_things_makes_no_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(SilentLearnerError, match="learner 0 did not answer for 12 s"):
        ask(learners(100.0), lambda learner: None, timeout_s=12.0)
    assert clock.now_s == 12.0


def test_what_goes_wrong_elsewhere_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def look() -> None:
        raise RuntimeError("an engine died")

    with pytest.raises(RuntimeError, match="an engine died"):
        ask(learners(100.0), lambda learner: None, timeout_s=60.0, meanwhile=look)
    assert clock.now_s == MEANWHILE_EVERY_S
