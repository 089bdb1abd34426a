"""Rollout actors that join and drain: without Ray, with RLlib's own actor manager."""

import time
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from cluster.workers.rollout_membership import DRAIN_TIMEOUT_S, PENDING_AFTER_S, RolloutMembership
from tests.cluster.ray_fakes import FakeActor, use_fakes


class Group:
    """The part of RLlib's EnvRunnerGroup that membership uses."""

    def __init__(self, num_actors: int):
        self._env_creator = self._remote_config_obj_ref = None
        self._worker_manager = FaultTolerantActorManager(
            [FakeActor(index + 1) for index in range(num_actors)],  # type: ignore[misc]
            init_id=1,
        )
        self.made: dict[int, FakeActor] = {}

    def _make_worker(self, *, worker_index: int, **others: Any) -> FakeActor:
        self.made[worker_index] = FakeActor(worker_index)
        return self.made[worker_index]

    def healthy_env_runner_ids(self) -> list[int]:
        return self._worker_manager.healthy_actor_ids()


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)


def numbers(group: Group) -> dict[int, object]:
    """By RLlib's index, the index that the actor was created with."""
    return {index: actor.name for index, actor in group._worker_manager.actors().items()}  # type:
    ignore[attr - defined]


def test_an_actor_joins_when_it_answers_under_the_index_that_it_was_created_with() -> None:
    group = Group(2)
    membership = RolloutMembership(group)
    assert membership.scale(4) == []
    membership.admit()
    assert numbers(group) == {1: 1, 2: 2} and not membership.is_stable
    group.made[4].end("ping", "pong")  # the later one first
    membership.admit()
    group.made[3].end("ping", "pong")
    membership.admit()
    assert numbers(group) == {1: 1, 2: 2, 4: 4, 3: 3} and membership.is_stable and membership.num_active == 4


def test_an_index_is_never_used_twice() -> None:
    group = Group(3)
    membership = RolloutMembership(group)
    assert membership.scale(2) == [3]
    membership.remove([3])
    membership.scale(3)
    group.made[4].end("ping", "pong")
    membership.admit()
    assert numbers(group) == {1: 1, 2: 2, 4: 4}


def test_joining_actors_are_removed_first_and_then_the_newest_drain() -> None:
    group = Group(3)
    membership = RolloutMembership(group)
    membership.scale(5)
    assert membership.scale(2) == [3]
    assert group.made[4].is_killed and group.made[5].is_killed
    assert (membership.draining, membership.num_active, membership.is_stable) == ([3], 2, False)
    assert membership.scale(2) == [], "it drains already"


def test_a_draining_actor_expires_after_a_minute_or_when_it_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    group = Group(3)
    membership = RolloutMembership(group)
    membership.scale(1)
    assert membership.expired() == []
    group._worker_manager.set_actor_state(2, healthy=False)
    assert membership.expired() == [2]
    now += DRAIN_TIMEOUT_S + 1
    assert membership.expired() == [2, 3]
    actors = group._worker_manager.actors()
    membership.remove([2, 3])
    assert numbers(group) == {1: 1} and actors is group._worker_manager.actors()


def test_a_joining_actor_that_died_is_pinged_again_and_a_pending_one_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    group = Group(1)
    membership = RolloutMembership(group)
    membership.scale(2)
    group.made[2].end("ping", RayActorError())
    membership.admit()
    assert len(group.made[2].open_calls("ping")) == 1
    now += PENDING_AFTER_S + 1
    membership.admit()
    membership.admit()
    assert capsys.readouterr().err == "rollout actor 2 is pending: the cluster has no room for it yet\n"


def test_a_tune_trial_cannot_change_its_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: "a place")
    with pytest.raises(ValueError, match="Tune trial"):
        RolloutMembership(Group(1)).scale(2)
