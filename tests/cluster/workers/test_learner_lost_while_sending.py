"""A learner that is lost during a send from GPU to GPU: the run continues with new engines and learners.
Without Ray, with actors that answer when the test says so."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from actors.process_info import ProcessInfo
from cluster.workers import learner_pool as learners_module
from cluster.workers import weight_transport
from cluster.workers.engine_pool import EnginePool
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.learner_rpc import BrokenSendError, LearnerError
from cluster.workers.weight_sync import MAX_BROKEN_SENDS, WeightSync
from cluster.workers.weight_transport import WeightRoute
from tests.cluster.ray_fakes import FakeActor, Reference, use_fakes

HERE = ProcessInfo(node_id="a" * 56, address="10.0.0.1", processes=((11, 0.0),))
DIED = "learner 0 died"


class Run:
    """Engines, and a transport that follows `script` call by call: it raises, or delivers the weights."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: Sequence[Exception | None]):
        self.actors: list[FakeActor] = []
        self.met: list[tuple[int, list[object]]] = []
        """(version, engines) of each send."""
        answers = iter(script)

        def send(
            way: WeightRoute, policy_version: int, engines: Sequence[Any]
        ) -> tuple[Mapping[Any, Any], Any]:
            self.met.append((policy_version, [engine.name for engine in engines]))
            if (error := next(answers)) is not None:
                raise error
            live = Reference()
            live.done({})
            return dict.fromkeys(engines, live), {}

        monkeypatch.setitem(weight_transport.TRANSPORTS, "nccl", send)  # type: ignore[arg-type]
        self.engines = EnginePool(self._create, num_engines=2, slots_per_engine=1, start_timeout_s=60.0)
        self.start()
        learners: Any = SimpleNamespace()
        self.sync = WeightSync(learners, self.engines, dtype="float32", timeout_s=60.0, transport="nccl")

    def start(self) -> None:
        """All created engines have started."""
        for actor in self.actors:
            for reference in actor.open_calls("start"):
                reference.done(HERE)
        self.engines.poll()

    def _create(self, number: int) -> Any:
        self.actors.append(FakeActor(number))
        return self.actors[-1]


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch)


def test_engines_of_a_broken_send_are_replaced_and_get_the_version_that_was_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch, [None, BrokenSendError(DIED), None])
    run.sync.send(0)
    run.sync.finish()
    assert run.engines.num_serving == 2
    assert run.sync.send(1) == [], "no living engine serves old weights: the slots are free"
    assert [actor.is_killed for actor in run.actors] == [True, True, False, False]
    assert run.engines.num_serving == 0 and run.engines.num_lost == 2
    run.sync.finish()
    run.sync.deliver()
    assert len(run.met) == 2, "the replacements are still starting"
    run.start()
    run.sync.deliver()
    run.sync.deliver()
    assert run.met[-1] == (1, [2, 3]) and run.engines.num_serving == 2


def test_four_broken_sends_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, [BrokenSendError(DIED)] * (MAX_BROKEN_SENDS + 1))
    run.sync.send(0)
    for _ in range(MAX_BROKEN_SENDS - 1):
        run.start()
        run.sync.deliver()
    run.start()
    with pytest.raises(LearnerError, match=r"learner 0 died, 4 times in a row .*: resume"):
        run.sync.deliver()


def test_a_successful_send_resets_the_count_of_broken_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    one_round = [*[BrokenSendError(DIED)] * MAX_BROKEN_SENDS, None]
    run = Run(monkeypatch, one_round * 2)
    for version in range(2):
        run.sync.send(version)
        while run.engines.num_serving < 2:
            run.start()
            run.sync.deliver()
    assert run.engines.num_lost == 2 * 2 * MAX_BROKEN_SENDS


class Rank:
    """A learner's actor: `apply` fails with its death, or does the work at once."""

    def __init__(self, *, is_dead: bool):
        self.asked = 0
        self._is_dead = is_dead

    @property
    def apply(self) -> SimpleNamespace:
        return SimpleNamespace(remote=self._apply)

    def _apply(self, work: Callable[[Any], Any]) -> Reference:
        self.asked += 1
        reference = Reference()
        policy = SimpleNamespace(send_weights=lambda engines, **how: {"time/engine_paused_s": 0.5})
        reference.done(RayActorError() if self._is_dead else work(policy))
        return reference


def test_a_broken_send_is_not_retried_and_the_next_call_goes_to_new_learners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead, new = Rank(is_dead=True), Rank(is_dead=False)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(
        learners_module, "rebuild", lambda group, *, reason, timeout_s: SimpleNamespace(_workers=[new])
    )
    group = SimpleNamespace(_workers=[dead], shutdown=lambda: None)
    learners = LearnerPool(group, max_steps=1)

    def send() -> dict[str, float]:
        return learners.send_weights(
            [], transport="nccl", workers_per_engine=1, dtype="float32", policy_version=1
        )

    with pytest.raises(BrokenSendError, match="learner 0 died"):
        send()
    assert dead.asked == 1 and new.asked == 0
    assert send() == {"time/engine_paused_s": 0.5} and learners.num_rebuilds == 1
