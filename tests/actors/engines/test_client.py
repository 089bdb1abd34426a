"""The engines' client: the engine that each turn of a dialogue goes to, and retries when an engine fails."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayError

from actors.engines import client as client_module
from actors.engines.client import EngineClient, EngineSet
from actors.engines.protocol import CompletionRequest, EngineError, EngineGoneError, RequestError, Sampling
from actors.engines.rpc import EngineRpcServer, RpcRequest, RpcResponse, SampledTokens
from actors.trajectory import Completion

DEAD = RayActorError()
REFUSED = EngineError("vLLM has died")


class FakeEngine:
    """In place of an engine actor's handle: completes after `delay_s`, of which it computed `policy_s`, or
    fails with `error`; it is dead if that is an error of Ray."""

    def __init__(self, *, delay_s: float = 0.0, policy_s: float = 0.0, error: Exception | None = None):
        self.delay_s, self.policy_s, self.error = delay_s, policy_s, error
        self.seeds: list[int] = []
        self.server = EngineRpcServer(self._sample)
        self.submit, self.poll, self.cancel = (
            Remote(call) for call in (self._submit, self._poll, self._cancel)
        )

    async def _submit(self, client_id: str, requests: list[RpcRequest]) -> None:
        self.seeds += [request.seed for request in requests]
        self.server.submit(client_id, requests)

    async def _poll(self, client_id: str) -> list[RpcResponse]:
        if isinstance(self.error, RayError):
            raise self.error
        return await self.server.poll(client_id)

    async def _cancel(self, client_id: str, request_id: int) -> None:
        self.server.cancel(client_id, request_id)

    async def _sample(self, token_ids: np.ndarray, **sampling: Any) -> SampledTokens:
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return np.array([5], np.int32), np.array([-1.0], np.float32), np.array([3], np.int32), self.policy_s


class Remote:
    """One method of an actor's handle."""

    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]):
        self._call = call

    def remote(self, *args: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._call(*args))


def client_of(*engines: FakeEngine, timeout_s: float = 60.0) -> EngineClient:
    handles: Any = engines
    return EngineClient(handles, timeout_s=timeout_s)


def update(client: EngineClient, version: int, *engines: FakeEngine) -> None:
    handles: Any = engines
    client.update(EngineSet(version=version, engines=handles, capacity=1.0))


async def complete(client: EngineClient, dialogue: int | None, *, seed: int = 0) -> Completion:
    request = CompletionRequest(
        token_ids=np.array([1, 2], np.int32),
        messages=(),
        sampling=Sampling(),
        seed=seed,
        dialogue=dialogue,
    )
    return await client.complete(request)


async def test_all_turns_of_a_dialogue_go_to_one_engine_and_dialogues_are_spread():
    engines = [FakeEngine(delay_s=0.001) for _ in range(3)]
    client = client_of(*engines)

    async def talk(dialogue: int) -> None:
        for _ in range(5):
            await complete(client, dialogue, seed=dialogue)

    await asyncio.gather(*(talk(dialogue) for dialogue in range(12)))
    seen = [set(engine.seeds) for engine in engines]
    assert [len(engine.seeds) for engine in engines] == [20] * 3
    assert set.union(*seen) == set(range(12)) and sum(map(len, seen)) == 12


async def test_dialogues_one_after_the_other_are_spread_too():
    engines = [FakeEngine(), FakeEngine()]
    client = client_of(*engines)
    for dialogue in range(6):
        await complete(client, dialogue, seed=dialogue)
    assert [engine.seeds for engine in engines] == [[0, 2, 4], [1, 3, 5]]


async def test_a_dialogue_begins_on_the_engine_with_the_fewest_requests_in_flight():
    busy, free = FakeEngine(delay_s=30.0), FakeEngine()
    client = client_of(busy, free)
    waiting = asyncio.create_task(complete(client, 0))
    await asyncio.sleep(0)
    for dialogue in range(1, 6):
        await complete(client, dialogue)
    assert (len(busy.seeds), len(free.seeds)) == (1, 5)
    waiting.cancel()


@pytest.mark.parametrize("error", [DEAD, REFUSED])
async def test_a_dialogue_moves_when_its_engine_fails_and_stays_with_the_new_one(error: Exception):
    broken, sound = FakeEngine(), FakeEngine()
    client = client_of(broken, sound)
    await complete(client, 0)
    broken.error = error
    await complete(client, 0, seed=1)
    broken.error = None
    await complete(client, 0, seed=2)
    await complete(client, 1, seed=3)
    assert (broken.seeds, sound.seeds) == ([0, 1], [1, 2, 3]), "the failed one is avoided for a while"


async def test_a_request_that_is_at_fault_is_not_retried_and_its_engine_not_avoided():
    asked, other = FakeEngine(error=RequestError("the prompt is too long")), FakeEngine()
    client = client_of(asked, other)
    with pytest.raises(RequestError, match="too long"):
        await complete(client, 0)
    asked.error = None
    await complete(client, 0, seed=1)
    assert (asked.seeds, other.seeds) == ([0, 1], [])


async def test_an_engine_that_took_too_long_is_avoided_for_a_while():
    stuck, sound = FakeEngine(delay_s=600.0), FakeEngine()
    handles: Any = [stuck, sound]
    client = EngineClient(handles, timeout_s=0.05)
    with pytest.raises(EngineError, match=r"complete_timeout_s=0\.05"):
        await complete(client, 0)
    client._timeout_s = 60.0
    await complete(client, 0, seed=1)
    assert (stuck.seeds, sound.seeds) == ([0], [1])


async def test_a_failed_engine_gets_requests_again_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "AVOIDED_S", 0.0)
    broken, sound = FakeEngine(error=DEAD), FakeEngine()
    client = client_of(broken, sound)
    await complete(client, 0)
    broken.error = None
    for dialogue in range(1, 5):
        await complete(client, dialogue)
    assert len(broken.seeds) > 1


async def test_if_every_engine_fails_the_last_error_is_raised():
    client = client_of(FakeEngine(error=EngineError("no memory")), FakeEngine(error=REFUSED))
    with pytest.raises(EngineError, match="vLLM has died"):
        await complete(client, 0)


async def test_the_wait_for_the_replacement_of_a_dead_engine_is_limited():
    for engines in ([FakeEngine(error=DEAD)], []):
        client = client_of(*engines, timeout_s=0.05)
        with pytest.raises(EngineError, match=r"no replacement within 0\.05 s"):
            await complete(client, 0)


@pytest.mark.parametrize("error", [DEAD, EngineGoneError("vLLM has died")])
async def test_a_completion_that_died_with_its_engine_is_retried_on_the_replacement(error: Exception):
    dead, new = FakeEngine(), FakeEngine()
    client = client_of(dead)
    await complete(client, 0)
    dead.error = error
    asked = asyncio.create_task(complete(client, 0, seed=1))
    await asyncio.sleep(0.01)
    update(client, 1)  # the run has noticed
    await asyncio.sleep(0.01)
    assert not asked.done()
    update(client, 2, new)
    assert (await asked).token_ids.tolist() == [5]
    assert (dead.seeds, new.seeds) == ([0, 1], [1])


async def test_an_older_set_of_engines_changes_nothing():
    first, second = FakeEngine(), FakeEngine()
    client = client_of()
    update(client, 2, second)
    update(client, 1, first)
    await complete(client, 0)
    assert (len(first.seeds), len(second.seeds)) == (0, 1)


async def test_a_dialogue_leaves_a_removed_engine_and_requests_in_flight_finish_there():
    leaving, staying = FakeEngine(delay_s=0.02), FakeEngine()
    client = client_of(leaving)
    asked = asyncio.create_task(complete(client, 0, seed=1))
    await asyncio.sleep(0.005)
    update(client, 1, staying)
    await asked
    await complete(client, 0, seed=2)
    assert (leaving.seeds, staying.seeds) == ([1], [2])


async def test_an_engine_that_stays_keeps_its_dialogues():
    staying, others = FakeEngine(), [FakeEngine() for _ in range(3)]
    client = client_of(staying)
    await complete(client, 0, seed=1)
    update(client, 1, *others, staying)
    await complete(client, 0, seed=2)
    assert staying.seeds == [1, 2]


async def test_seconds_in_which_the_engine_did_not_compute_count_as_queueing():
    completion = await complete(client_of(FakeEngine(delay_s=0.05, policy_s=0.03)), 0)
    assert completion.queue_s >= 0.019
    completion = await complete(client_of(FakeEngine(policy_s=5.0)), 0)
    assert completion.queue_s == 0.0


async def test_the_number_of_remembered_dialogues_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "MAX_DIALOGUES", 2)
    engines = [FakeEngine(), FakeEngine()]
    client = client_of(*engines)
    for dialogue in (0, 1, 2, 1, 2):
        await complete(client, dialogue, seed=dialogue)
    assert [engine.seeds for engine in engines] == [[0, 2, 2], [1, 1]]
    await complete(client, 0, seed=9)
    assert engines[1].seeds[-1] == 9, "the forgotten one is routed as a new dialogue"
