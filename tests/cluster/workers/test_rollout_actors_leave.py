"""Rollout actors that are to go: the feed gives them nothing more, and what they still hold is not lost."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.process_info import ProcessInfo
from actors.rollout_setup import WorkState
from cluster.workers.engine_pool import no_engines
from cluster.workers.rollout_membership import LEAVE_S
from cluster.workers.rollout_pool import RolloutPool
from tests.cluster.ray_fakes import use_fakes

HERE = ProcessInfo(node_id="a" * 56, address="10.0.0.1", processes=((11, 0.0),))


class Actor:
    """A handle, and what is behind it."""

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
    """Three actors as RLlib manages them."""

    def __init__(self) -> None:
        self.here = {index: Actor(index) for index in (1, 2, 3)}

    @property
    def _worker_manager(self) -> "Group":
        return self

    def actors(self) -> dict[int, Actor]:
        return self.here

    def remove_actor(self, index: int) -> Actor:
        return self.here.pop(index)

    def healthy_env_runner_ids(self) -> list[int]:
        return [index for index, actor in self.here.items() if not actor.is_dead]

    def foreach_env_runner(
        self, work: Callable[[Any], Any], *, remote_worker_ids: Sequence[int], **others: Any
    ) -> list[Any]:
        return [work(self.here[index]) for index in remote_worker_ids if not self.here[index].is_dead]


class Feed:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.dismissed: list[str] = []
        self.forgotten: list[str] = []
        self.dismiss = SimpleNamespace(remote=self.dismissed.append)
        self.forget = SimpleNamespace(remote=self.forgotten.append)
        self.pop_lost = SimpleNamespace(remote=lambda: ())


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)


def start() -> tuple[RolloutPool, Group, Any]:
    group, feed = Group(), Feed()
    rollouts = RolloutPool(group, engines=no_engines(), restore=lambda: None, group_timeout_s=600.0)
    rollouts.supervise(feed, group_size=2)  # type: ignore[arg-type]
    return rollouts, group, feed


def test_who_leaves_gets_no_more_orders_and_ends_when_its_dialogues_are_over() -> None:
    rollouts, group, feed = start()
    rollouts.scale(2)
    assert feed.dismissed == ["rollout-3-1"]
    rollouts.supervise(feed, group_size=2)
    assert 3 in group.here and feed.forgotten == []
    leaving, leaving.is_idle = group.here[3], True  # type: ignore[misc]
    rollouts.supervise(feed, group_size=2)
    assert leaving.is_dead and list(group.here) == [1, 2]
    assert feed.forgotten == ["rollout-3-1"], "an order that it was given in its last moment goes to others"
    rollouts.supervise(feed, group_size=2)
    assert len(feed.forgotten) == 1


def test_who_takes_too_long_to_leave_is_ended_and_others_get_its_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rollouts, group, feed = start()
    rollouts.scale(1)
    now += LEAVE_S + 1
    rollouts.supervise(feed, group_size=2)
    assert list(group.here) == [1] and sorted(feed.forgotten) == ["rollout-2-1", "rollout-3-1"]


def test_who_dies_while_it_leaves_is_waited_for_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    rollouts, group, feed = start()
    rollouts.scale(2)
    group.here[3].die()
    rollouts.supervise(feed, group_size=2)
    assert list(group.here) == [1, 2] and feed.forgotten == ["rollout-3-1"]
    assert capsys.readouterr().err == "rollout actor 3 has left\n"


def test_who_dies_otherwise_is_named_with_its_place_and_its_groups_go_to_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rollouts, group, feed = start()
    group.here[2].life = 2  # it died and is back, before anybody looked
    rollouts.supervise(feed, group_size=2)
    assert feed.forgotten == ["rollout-2-1"]
    assert "rollout actor 2 (pid 11 on 10.0.0.1) has died: others get its groups" in capsys.readouterr().err
