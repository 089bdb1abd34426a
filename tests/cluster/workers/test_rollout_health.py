"""A hung rollout actor costs the driver one deadline, not one at every poll."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.workers.engine_pool import no_engines
from cluster.workers.rollout_health import ANSWER_TIMEOUT_S, RolloutHealth
from cluster.workers.rollout_pool import NONE_ALIVE_TIMEOUT_S, Assignment, RolloutPool


class Actors:
    """An EnvRunnerGroup of three actors. Hung ones answer no call; dead ones are not healthy."""

    def __init__(self) -> None:
        self.hanging: set[int] = set()
        self.dead: set[int] = set()
        self.waited_s = 0.0
        self.pinged: set[int] = set()
        """Pinged, and not answered yet."""

    @property
    def _worker_manager(self) -> "Actors":
        return self

    def actors(self) -> dict[int, str]:
        return {index: f"the handle of {index}" for index in (1, 2, 3)}

    def set_actor_state(self, index: int, *, healthy: bool) -> None:
        assert not healthy
        self.dead.add(index)

    def probe_unhealthy_env_runners(self, *, timeout_seconds: float) -> None: ...

    def healthy_env_runner_ids(self) -> list[int]:
        return [index for index in (1, 2, 3) if index not in self.dead]

    def foreach_env_runner(
        self,
        work: Callable[[Any], Any],
        *,
        remote_worker_ids: Sequence[int],
        local_env_runner: bool,
        timeout_seconds: float,
    ) -> list[Any]:
        assert remote_worker_ids and not local_env_runner
        if self.hanging.intersection(remote_worker_ids):
            self.waited_s += timeout_seconds
        answering = [index for index in remote_worker_ids if index not in self.hanging | self.dead]
        return [work(SimpleNamespace(worker_index=index)) for index in answering]

    def foreach_env_runner_async(
        self, work: Callable[[Any], Any], *, tag: str, remote_worker_ids: Sequence[int]
    ) -> int:
        self.pinged.update(remote_worker_ids)
        return len(remote_worker_ids)

    def fetch_ready_async_reqs(self, *, tags: str, timeout_seconds: float) -> list[tuple[int, str]]:
        assert timeout_seconds == 0.0
        answered = self.pinged - self.hanging - self.dead
        self.pinged -= answered
        return [(index, "pong") for index in answered]


def ask(health: RolloutHealth) -> list[int]:
    return [actor.worker_index for actor in health.ask(lambda actor: actor)]


def test_a_hung_actor_is_waited_for_once_and_is_back_when_it_answers() -> None:
    actors = Actors()
    health = RolloutHealth(actors)
    assert ask(health) == [1, 2, 3]
    actors.hanging = {2}
    assert ask(health) == [1, 3]
    assert actors.pinged == {2}  # at once: the next poll may be a long step away
    assert [ask(health) for _ in range(2)] == [[1, 3]] * 2
    assert actors.waited_s == ANSWER_TIMEOUT_S
    assert [*health.unresponsive_s] == [2] and health.unresponsive_s[2] >= 0.0
    actors.hanging = set()
    assert ask(health) == [1, 2, 3]
    assert not health.unresponsive_s


def test_a_dead_actor_is_not_unresponsive() -> None:
    actors = Actors()
    health = RolloutHealth(actors)
    actors.hanging = {2}
    ask(health)
    actors.dead = {2}
    assert (ask(health), health.unresponsive_s) == ([1, 3], {})


def test_an_unresponsive_actor_that_is_restarted_is_unhealthy_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actors = Actors()
    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append((actor, no_restart)))
    health = RolloutHealth(actors)
    actors.hanging = {2}
    ask(health)
    health.restart(2)
    assert killed == [("the handle of 2", False)]
    assert (ask(health), health.unresponsive_s) == ([1, 3], {})
    actors.dead, actors.hanging = set(), set()
    assert ask(health) == [1, 2, 3]


def test_if_all_hang_none_is_asked() -> None:
    actors = Actors()
    health = RolloutHealth(actors)
    actors.hanging = {1, 2, 3}
    assert [ask(health) for _ in range(2)] == [[], []]
    assert actors.waited_s == ANSWER_TIMEOUT_S


class Source:
    """A work source that has lost nothing."""

    @property
    def pop_reassigned(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: ())


def test_a_run_whose_actors_all_hung_through_a_long_step_waits_until_they_are_restarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, killed = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(ray, "get", lambda references, timeout: references)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append(actor))
    actors, source = Actors(), Source()
    rollouts = RolloutPool(actors, engines=no_engines(), group_timeout_s=600.0)
    assignment = Assignment(source=source, group_size=2)  # type: ignore[arg-type]

    def poll(at_s: float) -> None:
        nonlocal now
        now = at_s
        rollouts.poll(assignment)

    actors.hanging = {1, 2, 3}
    poll(0.0)
    assert not killed
    poll(NONE_ALIVE_TIMEOUT_S + 1)
    assert len(killed) == 3
    poll(2 * NONE_ALIVE_TIMEOUT_S)
    with pytest.raises(RuntimeError, match="no rollout actor has been alive for 120 s"):
        poll(2 * NONE_ALIVE_TIMEOUT_S + 2)
