"""Which engines serve, and what happens to one that dies, hangs, fails to start or is drained."""

import time
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.engines.engine_clock import EngineUsage
from actors.engines.protocol import EngineGoneError
from actors.process_info import ProcessInfo
from cluster.workers.engine_pool import DRAIN_TIMEOUT_S, UNRESPONSIVE_S, EnginePool, EngineStartError
from tests.cluster.ray_fakes import FakeActor, use_fakes

HERE = ProcessInfo(node_id="a" * 56, address="10.0.0.1", processes=((11, 0.0), (12, 0.0)))
BUSY = EngineUsage(duration_s=3.0, idle_s=2.0, paused_s=0.0, request_s=1.0)
IDLE = EngineUsage(duration_s=3.0, idle_s=3.0, paused_s=0.0, request_s=0.0)


class Clock:
    """A manual `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    use_fakes(monkeypatch)
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


class Made:
    """The engine actors that were created, in that order."""

    def __init__(self, num_engines: int):
        self.actors: list[FakeActor] = []
        self.engines = EnginePool(
            self._create, num_engines=num_engines, slots_per_engine=8, start_timeout_s=300.0
        )

    def _create(self, number: int) -> Any:
        self.actors.append(FakeActor(number))
        return self.actors[-1]

    def start(self, *numbers: int) -> None:
        for number in numbers:
            self.actors[number].end("start", HERE)
        self.engines.poll()

    def serve(self, *numbers: int) -> None:
        for number in numbers:
            self.engines.mark_receiving(self.actors[number])  # type: ignore[arg-type]
            self.engines.mark_serving(self.actors[number])  # type: ignore[arg-type]

    @property
    def known(self) -> list[object]:
        """The engines that rollout actors know."""
        current = self.engines.snapshot(num_sharing=2)
        assert current is not None
        return [actor.name for actor in current.engines]  # type: ignore[attr-defined]


def serving(num_engines: int) -> Made:
    made = Made(num_engines)
    made.start(*range(num_engines))
    made.serve(*range(num_engines))
    return made


def test_rollout_actors_know_an_engine_only_once_it_holds_the_live_weights() -> None:
    made = Made(2)
    made.start(0, 1)
    assert (made.known, len(made.engines.awaiting_weights)) == ([], 2)
    made.serve(0)
    assert (made.known, len(made.engines.awaiting_weights)) == ([0], 1)
    current = made.engines.snapshot(num_sharing=2)
    assert current is not None and current.capacity == 4.0  # eight of one engine, between two


def test_every_change_gives_the_set_a_higher_version() -> None:
    made = serving(2)
    versions = [made.engines.snapshot(num_sharing=1).version]  # type: ignore[union-attr]
    made.engines.mark_lost(made.actors[0], "it died")  # type: ignore[arg-type]
    versions.append(made.engines.snapshot(num_sharing=1).version)  # type: ignore[union-attr]
    made.start(2)
    made.serve(2)
    versions.append(made.engines.snapshot(num_sharing=1).version)  # type: ignore[union-attr]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize("error", [RayActorError(), EngineGoneError("vLLM has died")])
def test_a_dead_engine_is_killed_and_replaced(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    made = serving(2)
    made.actors[1].end("check", error)
    made.engines.poll()
    assert made.known == [0] and made.actors[1].is_killed and len(made.actors) == 3
    assert "engine 1 (pid 11 on 10.0.0.1) is lost" in capsys.readouterr().err
    made.start(2)
    assert made.known == [0], "it has no weights yet"
    made.serve(2)
    assert made.known == [0, 2] and made.engines.is_stable and made.engines.num_lost == 1


def test_an_engine_that_does_not_answer_is_killed_after_thirty_seconds(clock: Clock) -> None:
    made = serving(1)
    clock.now += UNRESPONSIVE_S
    made.engines.poll()
    assert not made.actors[0].is_killed
    clock.now += 1
    made.engines.poll()
    assert made.actors[0].is_killed and len(made.actors) == 2


def test_an_engine_that_answers_is_pinged_again_and_stays(clock: Clock) -> None:
    made = serving(1)
    for _ in range(5):
        clock.now += UNRESPONSIVE_S - 1
        made.actors[0].end("check")
        made.engines.poll()
    assert made.known == [0] and not made.actors[0].is_killed


def test_three_failed_starts_in_a_row_end_the_run_and_two_do_not() -> None:
    made = serving(1)
    made.engines.scale(2)
    for number in (1, 2):
        made.actors[number].die()
        made.engines.poll()
    made.actors[3].die()
    with pytest.raises(EngineStartError, match="3 in a row did not start"):
        made.engines.poll()


def test_the_newest_of_too_many_engines_are_removed_once_their_completions_are_finished(clock: Clock) -> None:
    made = serving(3)
    made.engines.scale(1)
    assert made.known == [0], "it gets no new dialogue"
    assert not made.actors[1].is_killed
    for number in (1, 2):
        made.actors[number].end("usage", BUSY)  # since some earlier question
    made.engines.poll()
    made.actors[1].end("usage", IDLE)
    made.engines.poll()
    assert (made.actors[1].is_killed, made.actors[2].is_killed) == (True, False)
    clock.now += DRAIN_TIMEOUT_S + 1
    made.actors[0].end("check")
    made.engines.poll()
    assert made.actors[2].is_killed and len(made.actors) == 3 and made.engines.is_stable


def test_an_engine_that_is_still_starting_is_removed_at_once() -> None:
    made = serving(1)
    made.engines.scale(2)
    made.engines.scale(1)
    assert made.actors[1].is_killed and made.engines.is_stable


def test_an_engine_that_dies_while_it_drains_is_not_replaced() -> None:
    made = serving(2)
    made.engines.scale(1)
    made.actors[1].die()
    made.engines.poll()
    assert made.known == [0] and len(made.actors) == 2 and made.engines.is_stable
