"""Weight sync while engines die, start and leave: without Ray, with actors that answer when the test says
so."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from actors.engines.protocol import EngineError
from actors.process_info import ProcessInfo
from cluster.workers import weight_transport
from cluster.workers.engine_pool import EnginePool
from cluster.workers.learner_rpc import LearnerError
from cluster.workers.weight_sync import WeightSync
from cluster.workers.weight_transport import WeightRoute
from tests.cluster.ray_fakes import FakeActor, Reference, use_fakes

HERE = ProcessInfo(node_id="a" * 56, address="10.0.0.1", processes=((11, 0.0),))


class Learners:
    """Pack an empty payload."""

    def weights(self, *, dtype: str) -> tuple[str, dict[str, float]]:
        return "payload", {}


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch)


def start(
    num_engines: int, *, transport: Any = "shared_memory"
) -> tuple[WeightSync, list[FakeActor], EnginePool]:
    actors: list[FakeActor] = []

    def create(number: int) -> Any:
        actors.append(FakeActor(number))
        return actors[-1]

    engines = EnginePool(create, num_engines=num_engines, slots_per_engine=1, start_timeout_s=60.0)
    for actor in actors:
        actor.end("start", HERE)
    engines.poll()
    learners: Any = Learners()
    return (
        WeightSync(learners, engines, dtype="float32", timeout_s=60.0, transport=transport),
        actors,
        engines,
    )


def received(actor: FakeActor) -> list[int]:
    return [args[1] for method, args, _ in actor.calls if method == "receive"]


def test_a_version_is_live_without_an_engine_that_died_and_the_replacement_gets_it() -> None:
    sync, actors, engines = start(2)
    sync.send(0)
    actors[0].end("receive", {"time/engine_paused_s": 0.5})
    actors[1].die()
    sync.finish()
    assert engines.num_serving == 1 and sync.metrics["time/engine_paused_s"] == 0.5
    actors[2].end("start", HERE)
    engines.poll()
    sync.deliver()  # the learners have nothing else to do
    assert (received(actors[2]), engines.num_serving) == ([0], 1)
    sync.deliver()
    assert received(actors[2]) == [0], "it is sent once"
    actors[2].end("receive", {})
    sync.deliver()
    assert engines.num_serving == 2 and received(actors[0]) == [0]


def test_an_engine_that_started_during_a_step_gets_that_steps_weights_with_the_others() -> None:
    sync, actors, engines = start(1)
    sync.send(0)
    actors[0].end("receive", {})
    sync.finish()
    engines.scale(2)
    actors[1].end("start", HERE)
    engines.poll()
    live: Any = sync.send(1)
    assert (received(actors[0]), received(actors[1]), len(live)) == ([0, 1], [1], 2)


def test_an_error_that_other_engines_would_raise_too_is_raised() -> None:
    sync, actors, _ = start(2)
    sync.send(0)
    actors[1].end("receive", EngineError("a parameter is missing"))
    with pytest.raises(EngineError, match="a parameter is missing"):
        sync.deliver()


def test_an_engine_that_never_loads_its_weights_is_replaced_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync, actors, engines = start(2)
    sync.send(0)
    actors[0].end("receive", {})
    now = iter(range(0, 10_000, 50))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    sync.finish()
    assert actors[1].is_killed and not actors[0].is_killed and engines.num_serving == 1


def test_a_gpu_group_is_rebuilt_with_the_living_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[list[object]] = []

    def send(
        way: WeightRoute, policy_version: int, engines: Sequence[Any]
    ) -> tuple[Mapping[Any, Any], dict[str, float]]:
        met.append([engine.name for engine in engines])
        if any(engine.is_killed for engine in engines):
            raise LearnerError("learner 0 failed: an engine is gone")
        live = Reference()
        live.done({})
        return dict.fromkeys(engines, live), {}

    monkeypatch.setitem(weight_transport.TRANSPORTS, "nccl", send)  # type: ignore[arg-type]
    sync, actors, engines = start(2, transport="nccl")
    for actor in actors:
        actor.end("check")
    actors[1].die()
    monkeypatch.setattr(FakeActor, "check", property(lambda self: _Check(self)), raising=False)
    sync.send(0)
    sync.finish()
    assert met == [[0, 1], [0]] and engines.num_serving == 1
    actors[2].end("start", HERE)
    engines.poll()
    sync.deliver()
    assert met[-1] == [0, 2], "a GPU group sends to all of its members"


class _Check:
    """Answers at once, as a living engine does."""

    def __init__(self, actor: FakeActor):
        self._actor = actor

    def remote(self) -> Reference:
        reference = self._actor._call("check", ())
        if not reference.is_done:
            reference.done()
        return reference
