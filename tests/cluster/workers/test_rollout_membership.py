"""Rollout actors that join and leave: without Ray, with RLlib's own manager."""

import time
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from cluster.workers.rollout_membership import LEAVE_S, SAY_AFTER_S, RolloutMembership
from tests.cluster.ray_fakes import FakeActor, use_fakes


class Group:
    """What the crew needs of RLlib's EnvRunnerGroup."""

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
    """By RLlib's number, the one by which the actor knows itself."""
    return {index: actor.name for index, actor in group._worker_manager.actors().items()}  # type: ignore[attr-defined]


def test_a_newcomer_takes_part_when_it_answers_under_the_number_that_it_knows() -> None:
    group = Group(2)
    crew = RolloutMembership(group)
    assert crew.scale(4) == []
    crew.admit()
    assert numbers(group) == {1: 1, 2: 2} and not crew.is_settled
    group.made[4].end("ping", "pong")  # the later one first
    crew.admit()
    group.made[3].end("ping", "pong")
    crew.admit()
    assert numbers(group) == {1: 1, 2: 2, 4: 4, 3: 3} and crew.is_settled and crew.num_here == 4


def test_a_number_is_never_given_twice() -> None:
    group = Group(3)
    crew = RolloutMembership(group)
    assert crew.scale(2) == [3]
    crew.end([3])
    crew.scale(3)
    group.made[4].end("ping", "pong")
    crew.admit()
    assert numbers(group) == {1: 1, 2: 2, 4: 4}


def test_the_newest_leave_and_newcomers_first() -> None:
    group = Group(3)
    crew = RolloutMembership(group)
    crew.scale(5)
    assert crew.scale(2) == [3]
    assert group.made[4].is_killed and group.made[5].is_killed
    assert (crew.leaving, crew.num_here, crew.is_settled) == ([3], 2, False)
    assert crew.scale(2) == [], "it has been told"


def test_who_leaves_is_overdue_after_a_minute_and_gone_when_it_died(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    group = Group(3)
    crew = RolloutMembership(group)
    crew.scale(1)
    assert (crew.overdue(), crew.gone()) == ([], [])
    group._worker_manager.set_actor_state(2, healthy=False)
    assert crew.gone() == [2]
    now += LEAVE_S + 1
    assert crew.overdue() == [2, 3]
    actors = group._worker_manager.actors()
    crew.end([2, 3])
    assert numbers(group) == {1: 1} and actors is group._worker_manager.actors()


def test_a_newcomer_that_died_as_it_began_is_asked_again_and_one_without_room_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    group = Group(1)
    crew = RolloutMembership(group)
    crew.scale(2)
    group.made[2].end("ping", RayActorError())
    crew.admit()
    assert len(group.made[2].open_calls("ping")) == 1
    now += SAY_AFTER_S + 1
    crew.admit()
    crew.admit()
    assert capsys.readouterr().err == "rollout actor 2 waits for room in the cluster\n"


def test_the_processes_of_a_tune_trial_keep_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: "a place")
    with pytest.raises(ValueError, match="Tune trial"):
        RolloutMembership(Group(1)).scale(2)
