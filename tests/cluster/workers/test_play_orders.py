"""Every chunk of demonstrations gets its table although a rollout actor fails: without Ray."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import ray
from ray.exceptions import RayActorError

from actors.trajectory import GroupOrder
from cluster.workers.engine_pool import no_engines
from cluster.workers.play_orders import CHUNK_TIMEOUT_S, OrderPlayer
from cluster.workers.rollout_pool import UNRESPONSIVE_S, RolloutPool
from cluster.workers.supervisor import Supervisor
from simulators.task import TaskSource


class Dead:
    """The answer of an actor that died."""


class Hanging:
    """The answer of an actor that hangs."""


Failure = Literal["dead", "hanging", "slow"]
FAILURES = {"dead": Dead, "hanging": Hanging}


class Clock:
    """Advances during waits and work."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(
        self, refs: Sequence[Any], *, num_returns: int, timeout: float
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        assert num_returns == len(refs)
        ready = [ref for ref in refs if not isinstance(ref, Hanging)]
        self.now += timeout if len(ready) < len(refs) else 0.0
        return ready, []


class Worker:
    """A rollout actor that answers `num_holds` times that it is still working."""

    def __init__(self, clock: Clock, *, num_holds: float) -> None:
        self._clock = clock
        self._num_holds = num_holds

    def sample(self, *, orders: Sequence[GroupOrder], policy: str, wait_s: float) -> list[int] | None:
        if self._num_holds:
            self._num_holds -= 1
            self._clock.now += wait_s
            return None
        return [order.group_id for order in orders]


class TwoActors:
    """An EnvRunnerGroup whose references are their own values. The first actor fails in the first round, and
    is back in the next."""

    def __init__(self, failure: Failure, clock: Clock) -> None:
        self._failure = failure
        self._num_calls = 0
        self.unhealthy: list[int] = []
        self._workers = {
            1: Worker(clock, num_holds=math.inf if failure == "slow" else 2),
            2: Worker(clock, num_holds=2),
        }
        self._clock = clock

    @property
    def _worker_manager(self) -> "TwoActors":
        return self

    def actors(self) -> dict[int, Any]:
        def actor(index: int) -> Any:
            call = partial(self._call, index)
            return SimpleNamespace(
                apply=SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=call))
            )

        return {index: actor(index) for index in self._workers}

    def probe_unhealthy_env_runners(self, *, timeout_seconds: float) -> None: ...

    def healthy_env_runner_ids(self) -> list[int]:
        return [1, 2]

    def set_actor_state(self, index: int, *, healthy: bool) -> None:
        assert not healthy
        self.unhealthy.append(index)
        self._workers[index] = Worker(self._clock, num_holds=0)

    def _call(self, index: int, work: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
        self._num_calls += 1
        if self._num_calls == 1 and self._failure in FAILURES:
            return FAILURES[self._failure](), None
        return work(self._workers[index])


def get(ref: Any) -> Any:
    assert not isinstance(ref, Hanging)
    if isinstance(ref, Dead):
        raise RayActorError
    return ref


@pytest.mark.parametrize(
    ("failure", "most_s"),
    [("dead", 20.0), ("hanging", UNRESPONSIVE_S + 20.0), ("slow", CHUNK_TIMEOUT_S + 20.0)],
)
def test_every_chunk_has_its_table_though_an_actor_failed(
    failure: Failure, most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    clock = Clock()
    monkeypatch.setattr(ray, "wait", clock.wait)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append(actor))
    source = TaskSource({"travel": 1.0}, split="train", seed=0, difficulty=0)
    orders = [
        GroupOrder(group_id=i, task_key=source.draw(), group_size=1, seed=0) for i in range(2 * 256 + 3)
    ]
    chunks = {"a": orders[:256], "b": orders[256:512], "c": orders[512:]}
    actors = TwoActors(failure, clock)
    rollouts = RolloutPool(actors, engines=no_engines(), group_timeout_s=60.0)
    player = OrderPlayer(rollouts, Supervisor(rollouts, no_engines(), deliver_weights=lambda: None))
    tables: dict[str, Any] = {}
    came_at: list[float] = []
    for name, table in player.sample(chunks, policy="expert"):
        tables[name] = table
        came_at.append(clock.now)
    assert list(tables) == ["b", "a", "c"], "the failed chunk is played in the next round"
    assert came_at[0] < UNRESPONSIVE_S, "a finished table waits for no other actor"
    assert {name: list(table) for name, table in tables.items()} == {
        name: [order.group_id for order in chunk] for name, chunk in chunks.items()
    }
    assert actors.unhealthy == [1]
    assert len(killed) == (failure != "dead"), "a hung actor would queue the next call behind its hang"
    assert clock.now <= most_s
