"""Processes on a draining node are replaced before it ends, and no completion is lost: without Ray."""

import time
from typing import Any

import pytest
import ray
from ray.exceptions import RaySystemError

from actors.process_info import ProcessInfo
from cluster.workers.engine_pool import EnginePool
from cluster.workers.rollout_membership import RolloutMembership
from cluster.workers.supervisor import DRAIN_POLL_EVERY_S, NodeDrainWatch
from tests.cluster.ray_fakes import FakeActor, use_fakes
from tests.cluster.workers.test_rollout_membership import Group, numbers

SPOT, SAFE = "5" * 56, "a" * 56


def place(node_id: str) -> ProcessInfo:
    return ProcessInfo(node_id=node_id, address="10.0.0.1", processes=((11, 0.0),))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)


class Made:
    """Engines on the nodes that the test names, all of them serving."""

    def __init__(self, *nodes: str):
        self.actors: list[FakeActor] = []
        self.engines = EnginePool(
            self._create, num_engines=len(nodes), slots_per_engine=1, start_timeout_s=60.0
        )
        for number, node in enumerate(nodes):
            self.start(number, node)
            self.serve(number)

    def start(self, number: int, node: str) -> None:
        self.actors[number].end("start", place(node))
        self.engines.poll()

    def serve(self, number: int) -> None:
        self.engines.mark_receiving(self.actors[number])  # type: ignore[arg-type]
        self.engines.mark_serving(self.actors[number])  # type: ignore[arg-type]

    def _create(self, number: int) -> Any:
        self.actors.append(FakeActor(number))
        return self.actors[-1]

    @property
    def known(self) -> list[object]:
        current = self.engines.snapshot(num_sharing=1)
        assert current is not None
        return [actor.name for actor in current.engines]  # type: ignore[attr-defined]


def test_an_engine_on_a_draining_node_serves_until_its_replacement_does() -> None:
    made = Made(SPOT, SAFE)
    made.engines.drain_nodes({SPOT})
    made.engines.drain_nodes({SPOT})  # every poll reports it again
    assert len(made.actors) == 3 and made.known == [0, 1]
    made.start(2, SAFE)
    assert made.known == [0, 1], "it has no weights yet"
    made.serve(2)
    made.engines.poll()
    assert made.known == [1, 2] and made.actors[0].open_calls("usage"), "its completions are finished first"
    assert made.engines.num_lost == 0


def test_an_engine_that_dies_before_its_replacement_serves_is_not_replaced_twice() -> None:
    made = Made(SPOT)
    made.engines.drain_nodes({SPOT})
    made.actors[0].die()
    made.engines.poll()
    assert len(made.actors) == 2 and made.engines.num_serving == 0
    made.start(1, SAFE)
    made.serve(1)
    made.engines.poll()
    assert made.known == [1] and made.engines.is_stable


def test_of_too_many_engines_the_one_on_a_draining_node_is_removed_first() -> None:
    made = Made(SPOT, SAFE)
    made.engines.drain_nodes({SPOT})
    made.engines.scale(1)
    assert made.known == [1]


def test_rollout_actors_on_a_draining_node_are_replaced() -> None:
    group = Group(3)
    membership = RolloutMembership(group)
    assert membership.replace([2, 3]) == [2, 3]
    assert (membership.draining, membership.num_active, membership.num_wanted) == ([2, 3], 1, 3)
    assert membership.replace([2, 3]) == [], "it drains already"
    for index in (4, 5):
        group.made[index].end("ping", "pong")
    membership.admit()
    membership.remove([2, 3])
    assert numbers(group) == {1: 1, 4: 4, 5: 5} and membership.is_stable


def test_ray_is_asked_every_two_seconds_and_its_last_answer_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    answers: list[Any] = [{SPOT: 0}, RaySystemError("no GCS"), {}]
    asked: list[float] = []

    def ask() -> dict[str, int]:
        asked.append(now)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    notices = NodeDrainWatch(ask)
    assert notices.nodes() == notices.nodes() == {SPOT} and asked == [100.0]
    now += DRAIN_POLL_EVERY_S
    assert notices.nodes() == {SPOT}
    now += DRAIN_POLL_EVERY_S
    assert notices.nodes() == frozenset()


def test_without_a_cluster_no_node_is_draining() -> None:
    assert NodeDrainWatch().nodes() == frozenset()
