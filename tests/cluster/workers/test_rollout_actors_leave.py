"""Draining rollout actors get no more orders, and the groups that they still hold are reassigned."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.process_info import ProcessInfo
from actors.rollout_setup import WorkState
from cluster.workers.engine_pool import no_engines
from cluster.workers.rollout_membership import DRAIN_TIMEOUT_S
from cluster.workers.rollout_pool import Assignment, RolloutPool
from tests.cluster.ray_fakes import use_fakes

HERE = ProcessInfo(node_id="a" * 56, address="10.0.0.1", processes=((11, 0.0),))


class Actor:
    """A handle and its actor in one."""

    def __init__(self, worker_index: int):
        self.worker_index = worker_index
        self.is_idle = False
        self.is_dead = False
        self.life = 1

    def work(self, feed: Any, **setting: Any) -> WorkState:
        self.is_idle = False
        return self.state()

    def state(self) -> WorkState:
        return WorkState(
            worker_index=self.worker_index,
            worker_id=f"rollout-{self.worker_index}-{self.life}",
            process=HERE,
            is_idle=self.is_idle,
            error="",
        )

    def die(self) -> None:
        """Killed, as `ray.kill` does."""
        self.is_dead = True


class Group:
    """An EnvRunnerGroup of three actors."""

    def __init__(self) -> None:
        self.here = {index: Actor(index) for index in (1, 2, 3)}

    @property
    def _worker_manager(self) -> "Group":
        return self

    def actors(self) -> dict[int, Actor]:
        return self.here

    def remove_actor(self, index: int) -> Actor:
        return self.here.pop(index)

    def probe_unhealthy_env_runners(self, *, timeout_seconds: float) -> None: ...

    def healthy_env_runner_ids(self) -> list[int]:
        return [index for index, actor in self.here.items() if not actor.is_dead]

    def foreach_env_runner(
        self, work: Callable[[Any], Any], *, remote_worker_ids: Sequence[int], **others: Any
    ) -> list[Any]:
        return [work(self.here[index]) for index in remote_worker_ids if not self.here[index].is_dead]


class Source:
    """Records its calls."""

    def __init__(self) -> None:
        self.drained: list[str] = []
        self.reassigned: list[str] = []
        self.drain = SimpleNamespace(remote=self.drained.append)
        self.reassign_groups_of = SimpleNamespace(remote=self.reassigned.append)
        self.pop_reassigned = SimpleNamespace(remote=lambda: ())


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)


def start() -> tuple[RolloutPool, Group, Any, Assignment]:
    group, source = Group(), Source()
    rollouts = RolloutPool(group, engines=no_engines(), group_timeout_s=600.0)
    assignment = Assignment(source=source, group_size=2)  # type: ignore[arg-type]
    rollouts.poll(assignment)
    return rollouts, group, source, assignment


def test_a_draining_actor_gets_no_more_orders_and_is_removed_when_its_dialogues_are_finished() -> None:
    rollouts, group, source, assignment = start()
    rollouts.scale(2)
    assert source.drained == ["rollout-3-1"]
    rollouts.poll(assignment)
    assert 3 in group.here and source.reassigned == []
    draining, draining.is_idle = group.here[3], True  # type: ignore[misc]
    rollouts.poll(assignment)
    assert draining.is_dead and list(group.here) == [1, 2]
    assert source.reassigned == ["rollout-3-1"], "an order that it got at the last moment is reassigned"
    rollouts.poll(assignment)
    assert len(source.reassigned) == 1


def test_an_actor_that_drains_for_too_long_is_removed_and_its_groups_are_reassigned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rollouts, group, source, assignment = start()
    rollouts.scale(1)
    now += DRAIN_TIMEOUT_S + 1
    rollouts.poll(assignment)
    assert list(group.here) == [1] and sorted(source.reassigned) == ["rollout-2-1", "rollout-3-1"]


def test_an_actor_that_dies_while_it_drains_is_removed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    rollouts, group, source, assignment = start()
    rollouts.scale(2)
    group.here[3].die()
    rollouts.poll(assignment)
    assert list(group.here) == [1, 2] and source.reassigned == ["rollout-3-1"]
    assert capsys.readouterr().err == "rollout actor 3 was removed\n"


def test_a_dead_actor_is_reported_with_pid_and_node_and_its_groups_are_reassigned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rollouts, group, source, assignment = start()
    group.here[2].life = 2  # it died and was restarted between two polls
    rollouts.poll(assignment)
    assert source.reassigned == ["rollout-2-1"]
    assert (
        "rollout actor 2 (pid 11 on 10.0.0.1) has died: its groups are reassigned" in capsys.readouterr().err
    )
