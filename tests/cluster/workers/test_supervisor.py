"""What the supervisor checks in each kind of wait, how often, and in which order: without Ray."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from cluster.workers.restart import LostBufferError
from cluster.workers.rollout_pool import Assignment
from cluster.workers.supervisor import POLL_EVERY_S, NodeDrainWatch, Supervisor, Wait

TRAINING: Any = Assignment(source="the buffer", group_size=2)  # type: ignore[arg-type]
EVALUATION: Any = Assignment(source="a list", group_size=1)  # type: ignore[arg-type]


class Processes:
    """Records each check by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, draining: tuple[str, ...] = ()):
        self.checks: list[str] = []
        self.now = 100.0
        self.error: Exception | None = None
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        rollouts, engines = self, _Engines(self)
        self.supervisor = Supervisor(
            rollouts,  # type: ignore[arg-type]
            engines,  # type: ignore[arg-type]
            deliver_weights=self._record("weights"),
            training=TRAINING,
            check_learners=self._record("learners"),
            check_buffer=self._record("buffer"),
            poll_scaling=self._record("scaling"),
            drain_watch=NodeDrainWatch(lambda: dict.fromkeys(draining, 0)),
        )

    def _record(self, name: str) -> Callable[[], None]:
        return lambda: self.checks.append(name)

    def poll(self, assignment: Assignment | None) -> None:
        source = assignment.source if assignment else "health only"
        self.checks.append(f"rollouts: {source}")
        if self.error:
            raise self.error

    def drain_nodes(self, nodes: object) -> None:
        self.checks.append("drain rollouts")

    def tick(self, wait: Wait, assignment: Assignment | None = None) -> list[str]:
        self.checks.clear()
        self.supervisor.tick(wait, assignment=assignment)
        return list(self.checks)


class _Engines:
    def __init__(self, processes: Processes):
        self._checks = processes.checks

    def poll(self) -> None:
        self._checks.append("engines")

    def drain_nodes(self, nodes: object) -> None:
        self._checks.append("drain engines")


@pytest.mark.parametrize(
    ("wait", "assignment", "checks"),
    [
        ("groups", None, ["engines", "weights", "scaling", "rollouts: the buffer", "buffer"]),
        ("update", None, ["engines", "rollouts: the buffer", "buffer"]),
        ("sft_update", None, ["engines", "rollouts: health only", "buffer"]),
        ("between_sft_updates", None, ["engines", "weights", "rollouts: health only", "buffer"]),
        ("demonstrations", None, ["engines", "weights", "learners", "buffer"]),
        ("evaluation", EVALUATION, ["engines", "weights", "rollouts: a list", "learners", "buffer"]),
    ],
)
def test_each_wait_checks_what_is_free_to_answer(
    monkeypatch: pytest.MonkeyPatch, wait: Wait, assignment: Assignment | None, checks: list[str]
) -> None:
    assert Processes(monkeypatch).tick(wait, assignment) == checks


def test_learners_and_buffer_are_pinged_every_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes(monkeypatch)
    pinged_at = []
    for processes.now in (100.0, 100.5, 100.0 + POLL_EVERY_S - 0.1, 100.0 + POLL_EVERY_S):
        if "learners" in processes.tick("evaluation", EVALUATION):
            pinged_at.append(processes.now)
    assert pinged_at == [100.0, 100.0 + POLL_EVERY_S]


def test_rollout_actors_are_polled_during_a_long_step_and_not_at_every_tick_of_a_short_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = Processes(monkeypatch)
    polled_at: list[float] = []

    def tick(wait: Wait, at: float) -> None:
        processes.now = at
        if "rollouts: the buffer" in processes.tick(wait):
            polled_at.append(at)

    tick("update", 100.0)
    tick("groups", 100.0)
    for at in (101.0, 100.0 + POLL_EVERY_S - 1):
        tick("update", at)
    assert polled_at == [100.0, 100.0]
    for at in (115.0, 116.0, 130.0):
        tick("update", at)
    tick("groups", 130.0)
    assert polled_at == [100.0, 100.0, 115.0, 130.0, 130.0]


def test_engines_and_rollout_actors_of_draining_nodes_are_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Processes(monkeypatch, draining=("a node",)).tick("groups")
    assert checks[3:6] == ["drain engines", "drain rollouts", "rollouts: the buffer"]


def test_a_dead_work_source_is_a_lost_buffer_only_if_it_is_the_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = Processes(monkeypatch)
    processes.error = RayActorError()
    with pytest.raises(RayActorError):
        processes.tick("evaluation", EVALUATION)

    def is_lost() -> None:
        raise LostBufferError("the buffer has died")

    processes.supervisor.check_buffer = is_lost
    with pytest.raises(LostBufferError):
        processes.tick("groups")
