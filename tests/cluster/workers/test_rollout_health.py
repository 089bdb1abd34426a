"""Roll call: one actor that hangs costs the driver one wait, and not one at every look."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.workers.engine_pool import no_engines
from cluster.workers.rollout_health import ANSWER_TIMEOUT_S, RolloutHealth
from cluster.workers.rollout_pool import RESTART_TIMEOUT_S, RolloutPool


class Actors:
    """Three actors as RLlib manages them. Those that hang answer no call; dead ones are not healthy."""

    def __init__(self) -> None:
        self.hanging: set[int] = set()
        self.dead: set[int] = set()
        self.waited_s = 0.0
        self.pinged: set[int] = set()
        """Asked without waiting, and not answered yet."""

    @property
    def _worker_manager(self) -> "Actors":
        return self

    def actors(self) -> dict[int, str]:
        return {index: f"the handle of {index}" for index in (1, 2, 3)}

    def set_actor_state(self, index: int, *, healthy: bool) -> None:
        assert not healthy
        self.dead.add(index)

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


def ask(call: RolloutHealth) -> list[int]:
    return [actor.worker_index for actor in call.ask(lambda actor: actor)]


def test_an_actor_that_hangs_is_waited_for_once_and_is_back_when_it_answers() -> None:
    actors = Actors()
    call = RolloutHealth(actors)
    assert ask(call) == [1, 2, 3]
    actors.hanging = {2}
    assert ask(call) == [1, 3]
    assert actors.pinged == {2}  # at once: the next look may be a long step away
    assert [ask(call) for _ in range(2)] == [[1, 3]] * 2
    assert actors.waited_s == ANSWER_TIMEOUT_S
    assert [*call.silent_s] == [2] and call.silent_s[2] >= 0.0
    actors.hanging = set()
    assert ask(call) == [1, 2, 3]
    assert not call.silent_s


def test_an_actor_that_dies_is_not_silent() -> None:
    actors = Actors()
    call = RolloutHealth(actors)
    actors.hanging = {2}
    ask(call)
    actors.dead = {2}
    assert (ask(call), call.silent_s) == ([1, 3], {})


def test_a_silent_actor_that_is_ended_is_dead_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = Actors()
    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append((actor, no_restart)))
    call = RolloutHealth(actors)
    actors.hanging = {2}
    ask(call)
    call.end(2)
    assert killed == [("the handle of 2", False)]
    assert (ask(call), call.silent_s) == ([1, 3], {})
    actors.dead, actors.hanging = set(), set()
    assert ask(call) == [1, 2, 3]


def test_where_all_hang_nobody_is_asked_and_nobody_answers() -> None:
    actors = Actors()
    call = RolloutHealth(actors)
    actors.hanging = {1, 2, 3}
    assert [ask(call) for _ in range(2)] == [[], []]
    assert actors.waited_s == ANSWER_TIMEOUT_S


class Feed:
    """A feed that has lost nothing."""

    @property
    def pop_lost(self) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: ())


def test_a_run_whose_actors_all_hung_through_a_long_step_waits_until_they_are_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, killed = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(ray, "get", lambda references, timeout: references)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append(actor))
    actors, feed = Actors(), Feed()
    rollouts = RolloutPool(actors, engines=no_engines(), restore=lambda: None, group_timeout_s=600.0)

    def look(at_s: float) -> None:
        nonlocal now
        now = at_s
        rollouts.supervise(feed, group_size=2)  # type: ignore[arg-type]

    actors.hanging = {1, 2, 3}
    look(0.0)
    assert not killed
    look(RESTART_TIMEOUT_S + 1)
    assert len(killed) == 3
    look(2 * RESTART_TIMEOUT_S)
    with pytest.raises(RuntimeError, match="no rollout actor has lived for 120 s"):
        look(2 * RESTART_TIMEOUT_S + 2)
