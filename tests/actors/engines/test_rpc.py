"""The RPC to an engine: what shares a call, and what happens to requests that are cancelled, refused or
lost."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from actors.engines import rpc
from actors.engines.protocol import CompletionRequest, EngineError, RequestError, Sampling
from actors.engines.rpc import EngineRpcClient, EngineRpcServer, RpcRequest, SampledTokens


class Engine:
    """Counts the calls of a handle. A request is finished when its seed is."""

    def __init__(self) -> None:
        self.server = EngineRpcServer(self._complete)
        self.calls: list[str] = []
        self.seeds: list[int] = []
        self.cancelled: list[int] = []
        self.finished: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.dead = asyncio.Event()
        self.lost_calls = 0
        """So many of the next calls of `submit` fail."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("submit", "poll", "cancel"):
            raise AttributeError(name)
        return Method(name, self._call)

    def finish(self, *seeds: int) -> None:
        for seed in seeds:
            self.finished[seed].set()

    async def _call(self, name: str, *args: Any) -> Any:
        self.calls.append(name)
        if name == "submit" and self.lost_calls:
            self.lost_calls -= 1
            raise RayActorError
        if name != "poll":
            return getattr(self.server, name)(*args)
        poll, death = (
            asyncio.ensure_future(self.server.poll(*args)),
            asyncio.ensure_future(self.dead.wait()),
        )
        await asyncio.wait((poll, death), return_when=asyncio.FIRST_COMPLETED)
        if self.dead.is_set():
            poll.cancel()
            raise RayActorError
        death.cancel()
        return poll.result()

    async def _complete(self, token_ids: np.ndarray, *, seed: int, **sampling: Any) -> SampledTokens:
        self.seeds.append(seed)
        try:
            await self.finished[seed].wait()
        except asyncio.CancelledError:
            self.cancelled.append(seed)
            raise
        if seed < 0:
            raise RequestError("too long")
        return np.array([seed], np.int32), np.zeros(1, np.float32), np.zeros(1, np.int32), 0.0


class Method:
    def __init__(self, name: str, call: Callable[..., Coroutine[Any, Any, Any]]):
        self._name, self._call = name, call

    def remote(self, *args: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._call(self._name, *args))


def complete(client: EngineRpcClient, seed: int) -> asyncio.Task[SampledTokens]:
    request = CompletionRequest(
        token_ids=np.array([1], np.int32), messages=(), sampling=Sampling(), seed=seed, dialogue=None
    )
    return asyncio.ensure_future(client.complete(request))


async def started(engine: Engine, num_requests: int) -> None:
    async with asyncio.timeout(30):
        while len(engine.seeds) < num_requests:
            await asyncio.sleep(0)


async def test_requests_of_one_moment_share_a_call_and_so_do_their_responses():
    engine = Engine()
    client = EngineRpcClient(engine)
    requests = [complete(client, seed) for seed in range(40)]
    await started(engine, 40)
    engine.finish(*range(40))
    sampled = await asyncio.gather(*requests)
    assert [one[0].tolist() for one in sampled] == [[seed] for seed in range(40)]
    assert sorted(engine.calls) == ["poll", "submit"]


async def test_a_finished_request_does_not_wait_for_others_of_its_call():
    engine = Engine()
    client = EngineRpcClient(engine)
    slow, quick = complete(client, 0), complete(client, 1)
    await started(engine, 2)
    engine.finish(1)
    assert (await quick)[0].tolist() == [1] and not slow.done()
    engine.finish(0)
    assert (await slow)[0].tolist() == [0]


async def test_two_clients_get_their_own_responses():
    engine = Engine()
    clients = [EngineRpcClient(engine), EngineRpcClient(engine)]
    requests = [complete(client, seed) for seed, client in enumerate(clients)]
    await started(engine, 2)
    engine.finish(0, 1)
    assert [one[0].tolist() for one in await asyncio.gather(*requests)] == [[0], [1]]


async def test_a_cancelled_request_ends_in_the_engine_and_others_continue():
    engine = Engine()
    client = EngineRpcClient(engine)
    cancelled, kept = complete(client, 0), complete(client, 1)
    await started(engine, 2)
    cancelled.cancel()
    async with asyncio.timeout(30):
        while not engine.cancelled:
            await asyncio.sleep(0)
    assert engine.cancelled == [0]
    engine.finish(1)
    assert (await kept)[0].tolist() == [1]


async def test_a_request_that_is_cancelled_at_once_is_never_submitted():
    engine = Engine()
    client = EngineRpcClient(engine)
    cancelled, kept = complete(client, 0), complete(client, 1)
    asyncio.get_running_loop().call_soon(cancelled.cancel)
    await started(engine, 1)
    engine.finish(0, 1)
    assert (await kept)[0].tolist() == [1]
    assert engine.seeds == [1]


async def test_a_request_that_is_cancelled_before_it_starts_leaves_nothing_in_the_engine():
    engine = Engine()
    engine.server.submit("client", [RpcRequest(0, np.array([1], np.int32), 8, 1.0, 5)])
    engine.server.cancel("client", 0)
    async with asyncio.timeout(30):
        while engine.server._clients["client"].tasks:
            await asyncio.sleep(0)
    assert engine.seeds == []


async def test_a_request_that_the_engine_refuses_fails_alone():
    engine = Engine()
    client = EngineRpcClient(engine)
    refused, sound = complete(client, -1), complete(client, 1)
    await started(engine, 2)
    engine.finish(-1, 1)
    with pytest.raises(RequestError, match="too long"):
        await refused
    assert (await sound)[0].tolist() == [1]


async def test_requests_of_a_lost_call_fail_soon_while_others_are_answered(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(rpc, "POLL_S", 0.01)
    engine = Engine()
    engine.lost_calls = 1
    client = EngineRpcClient(engine)
    lost = [complete(client, 0), complete(client, 1)]
    while engine.lost_calls:
        await asyncio.sleep(0)
    others = [complete(client, seed) for seed in range(2, 50)]
    await started(engine, 48)
    for seed in range(2, 49):  # no poll is empty
        engine.finish(seed)
        await asyncio.sleep(0.001)
    async with asyncio.timeout(30):
        found = await asyncio.gather(*lost, return_exceptions=True)
    assert [type(one) for one in found] == [RayActorError] * 2
    assert not others[-1].done()
    engine.finish(49)
    assert [one[0].tolist() for one in await asyncio.gather(*others)] == [[seed] for seed in range(2, 50)]


async def test_requests_that_cannot_be_sent_fail_at_once():
    engine: Any = Engine()
    client = EngineRpcClient(engine)

    def refuse(*args: Any) -> None:
        raise TypeError("cannot pickle a generator")

    engine.submit = SimpleNamespace(remote=refuse)
    with pytest.raises(EngineError, match="not sent: TypeError: cannot pickle a generator"):
        await complete(client, 0)


async def test_the_client_keeps_nothing_of_requests_that_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rpc, "POLL_S", 0.01)
    engine = Engine()
    client = EngineRpcClient(engine)
    requests = [complete(client, seed) for seed in (0, 1, -2)]
    await started(engine, 3)
    async with asyncio.timeout(30):
        while client._unconfirmed:  # each call is checked once
            await asyncio.sleep(0.001)
    requests.append(complete(client, 3))
    await started(engine, 4)
    requests[1].cancel()
    engine.finish(0, -2, 3)
    await asyncio.gather(*requests, return_exceptions=True)
    assert not (client._futures or client._unconfirmed or client._checks)


async def test_all_requests_fail_with_their_engine_and_a_later_one_polls_again():
    engine = Engine()
    client = EngineRpcClient(engine)
    requests = [complete(client, seed) for seed in range(3)]
    await started(engine, 3)
    engine.dead.set()
    found = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(one) for one in found] == [RayActorError] * 3
    engine.dead.clear()
    later = complete(client, 7)
    await started(engine, 4)
    engine.finish(7)
    assert (await later)[0].tolist() == [7]


async def test_requests_of_an_expired_client_are_cancelled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rpc, "CLIENT_EXPIRES_S", 0.0)
    engine = Engine()
    engine.server.submit("dead", [RpcRequest(0, np.array([1], np.int32), 8, 1.0, 5)])
    await started(engine, 1)
    await asyncio.sleep(0.001)
    request = complete(EngineRpcClient(engine), 6)
    await started(engine, 2)
    engine.finish(6)
    await request
    assert engine.cancelled == [5]
