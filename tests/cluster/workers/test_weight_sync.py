"""Weight sync with engines and a learner as real processes, and weights of a few bytes."""

import asyncio
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from ray import cloudpickle
from ray.exceptions import RayActorError

from actors.engines.protocol import EngineError
from actors.process_info import ProcessInfo, this_process
from cluster.workers.engine_pool import EnginePool
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.weight_sync import WeightSync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("small_ray")]
WAIT_S = 30.0

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


class LightLearner:
    def apply(self, work: Callable[[Any], Any]) -> Any:
        return work(self)

    def weights(self, *, dtype: str) -> tuple[NDArray[np.uint8], dict[str, float]]:
        return np.arange(4, dtype=np.uint8), {"learner/weights/num_bytes": 4.0}


class LightEngine:
    """Loads weights when the test says so, and reports that it took `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._may_load = asyncio.Semaphore(0)
        self._error = ""
        self.begun: list[int] = []

    async def start(self) -> ProcessInfo:
        return this_process()

    async def check(self) -> None: ...

    async def receive(self, payload: NDArray[np.uint8], policy_version: int) -> dict[str, float]:
        self.begun.append(policy_version)
        await self._may_load.acquire()
        if self._error:
            raise EngineError(self._error)
        return {"time/engine_paused_s": self._seconds * payload.size}

    async def load(self) -> None:
        self._may_load.release()

    async def fail(self, error: str) -> None:
        self._error = error
        self._may_load.release()

    async def versions(self) -> list[int]:
        return self.begun


def get(ref: Any) -> Any:
    return ray.get(ref, timeout=WAIT_S)


def start(actor: type, *args: Any) -> Any:
    create: Any = ray.remote(num_cpus=0)(actor)
    return create.remote(*args)


def start_sync() -> tuple[WeightSync, list[Any]]:
    learners = LearnerPool(SimpleNamespace(_workers=[start(LightLearner)]), max_steps=1)
    actors: list[Any] = []

    def create(number: int) -> Any:
        actors.append(start(LightEngine, 0.25 * (number + 1)))
        return actors[-1]

    engines = EnginePool(create, num_engines=2, slots_per_engine=1, start_timeout_s=WAIT_S)
    engines.wait()
    return WeightSync(learners, engines, dtype="float32", timeout_s=WAIT_S), actors


def load(engines: list[Any]) -> None:
    get([engine.load.remote() for engine in engines])


def test_weights_arrive_in_parallel_with_the_caller_and_one_version_at_a_time() -> None:
    sync, engines = start_sync()
    live = sync.send(1)
    sync.deliver()
    load(engines[:1])
    get(live[0])  # done when it is loaded
    assert ray.wait(live, num_returns=2, timeout=0.5)[1] == live[1:]
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(sync.send, 2)
        with pytest.raises(TimeoutError):
            sending.result(timeout=1.0)
        assert [get(engine.versions.remote()) for engine in engines] == [[1], [1]]
        load(engines[1:])
        later = sending.result(timeout=WAIT_S)
    assert sync.metrics == {"time/engine_paused_s": 2.0, "learner/weights/num_bytes": 4.0}  # the slowest's
    load(engines)
    get(later)
    assert [get(engine.versions.remote()) for engine in engines] == [[1, 2], [1, 2]]
    sync.finish()


def test_an_engines_error_is_raised_without_waiting_for_the_others() -> None:
    sync, engines = start_sync()
    live = sync.send(1)
    get(engines[1].fail.remote("a parameter is missing"))
    ray.wait(live[1:], timeout=WAIT_S)
    with pytest.raises(EngineError, match="a parameter is missing"):
        sync.deliver()
    load(engines[:1])
    with pytest.raises(EngineError, match="a parameter is missing"):
        sync.finish()
    sync.close(timeout_s=WAIT_S)  # closing does not raise it again


def test_an_engine_that_is_killed_while_it_loads_is_replaced_and_the_replacement_gets_the_version() -> None:
    sync, engines = start_sync()
    live = sync.send(1)
    load(engines[:1])
    ray.kill(engines[1])
    sync.finish()
    with pytest.raises(RayActorError):
        get(live[1])
    deadline = time.monotonic() + WAIT_S
    while not sync._engines.awaiting_weights:
        assert time.monotonic() < deadline
        sync._engines.poll()
        time.sleep(0.1)
    sync.deliver()
    load(engines[2:])
    sync.finish()
    assert get(engines[2].versions.remote()) == [1] and sync._engines.is_stable
