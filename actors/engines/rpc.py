"""Batched RPC between a rollout actor and an engine actor: many dialogues share one Ray call.

The requests of one moment travel in one `submit`, and a long `poll` returns all completions that one step of
vLLM has finished. A Ray call per completion would cost the two processes 1.2 ms of CPU a turn more.
`EngineRpcClient` is the caller's side, `EngineRpcServer` the engine's; each lives on one event loop.
"""

import asyncio
import itertools
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from actors.engines.protocol import CompletionRequest, EngineError

IdArray = NDArray[np.int32]
SampledTokens = tuple[IdArray, NDArray[np.float32], IdArray, float]
"""(token_ids, logprobs, policy_versions), each [num_tokens], and the seconds in which vLLM computed them."""
POLL_S = 10.0
"""Longest wait of one poll."""
CLIENT_EXPIRES_S = 3600.0
"""A client that has not called for so long is dead, and its requests are cancelled. Long, since a process may
be stopped for a while; until then the responses to a dead client's last requests are kept."""


class RpcRequest(NamedTuple):
    """A request for a completion. A tuple, since it is pickled a thousand times a second."""

    request_id: int
    """Unique in its client; repeated in the response."""
    token_ids: IdArray  # [num_prompt_tokens]
    max_completion_tokens: int
    temperature: float
    seed: int


class RpcResponse(NamedTuple):
    """The outcome of a request."""

    request_id: int
    outcome: SampledTokens | EngineError
    """A `RequestError` if the request is at fault."""


CompleteFn = Callable[..., Awaitable[SampledTokens]]
"""(token_ids, max_completion_tokens=, temperature=, seed=) to a completion. Raises EngineError."""


class EngineRpcClient:
    """The caller's side."""

    def __init__(self, engine: Any):
        """`engine`: the handle of an actor with the methods of `EngineRpcServer`."""
        self._engine = engine
        self._client_id = uuid.uuid4().hex
        self._next_ids = itertools.count()
        self._futures: dict[int, asyncio.Future[SampledTokens]] = {}
        """Unanswered requests."""
        self._unsent: list[RpcRequest] = []
        self._unconfirmed: dict[int, Awaitable[None]] = {}
        """The call that submitted a request, while it is unknown whether the call arrived."""
        self._checks: set[asyncio.Task[None]] = set()
        self._polling: asyncio.Task[None] | None = None

    async def complete(self, request: CompletionRequest) -> SampledTokens:
        """Samples one completion; if this is cancelled, so is the request. Raises EngineError if the engine
        failed it, and RayError if the engine is gone."""
        loop, request_id = asyncio.get_running_loop(), next(self._next_ids)
        future = self._futures[request_id] = loop.create_future()
        sampling = request.sampling
        self._unsent.append(
            RpcRequest(
                request_id,
                request.token_ids,
                sampling.max_completion_tokens,
                sampling.temperature,
                request.seed,
            )
        )
        if len(self._unsent) == 1:
            loop.call_soon(self._submit)
        if self._polling is None:
            self._polling = loop.create_task(self._poll())
        try:
            return await future
        except asyncio.CancelledError:
            self._engine.cancel.remote(self._client_id, request_id)
            raise
        finally:
            self._futures.pop(request_id, None)
            self._unconfirmed.pop(request_id, None)

    def _submit(self) -> None:
        requests, self._unsent = [one for one in self._unsent if one.request_id in self._futures], []
        if not requests:  # all were cancelled at once
            return
        ids = [request.request_id for request in requests]
        try:
            call = cast(Awaitable[None], self._engine.submit.remote(self._client_id, requests))
        except Exception as error:  # one cannot be pickled, say: the others must not wait for ever
            self._fail(ids, EngineError(f"not sent: {type(error).__name__}: {error}"))
        else:
            self._unconfirmed.update(dict.fromkeys(ids, call))

    async def _poll(self) -> None:
        """Consumes responses while a request is unanswered."""
        checked_at = time.monotonic()
        try:
            while self._futures:
                poll = self._engine.poll.remote(self._client_id)
                for response in await cast(Awaitable[list[RpcResponse]], poll):
                    self._resolve(response)
                if time.monotonic() - checked_at > POLL_S:
                    self._check_submits()
                    checked_at = time.monotonic()
        except Exception as error:  # Ray's: the engine is gone, and every request with it
            self._fail(list(self._futures), error)
        finally:
            self._polling = None

    def _resolve(self, response: RpcResponse) -> None:
        future = self._futures.pop(response.request_id, None)
        if future is None or future.done():
            return
        if isinstance(response.outcome, EngineError):
            future.set_exception(response.outcome)
        else:
            future.set_result(response.outcome)

    def _check_submits(self) -> None:
        """Awaits, once, each submit call of which a request is still unanswered: one that failed brings no
        response. Not at the time of the call: that would cost as much as a poll."""
        ids: defaultdict[Awaitable[None], list[int]] = defaultdict(list)
        for request_id, call in self._unconfirmed.items():
            ids[call].append(request_id)
        self._unconfirmed.clear()
        for call, submitted in ids.items():
            check = asyncio.create_task(self._check_submit(call, submitted))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)

    async def _check_submit(self, call: Awaitable[None], request_ids: Sequence[int]) -> None:
        try:
            await call
        except Exception as error:  # Ray's
            self._fail(request_ids, error)

    def _fail(self, request_ids: Sequence[int], error: Exception) -> None:
        for request_id in request_ids:
            future = self._futures.get(request_id)
            if future is not None and not future.done():
                future.set_exception(error)


class _ClientState:
    """The server's state of one client."""

    def __init__(self) -> None:
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """Running requests by id."""
        self.responses: list[RpcResponse] = []
        self.has_responses = asyncio.Event()
        self.called_at = time.monotonic()


class EngineRpcServer:
    """The engine's side, for all its clients."""

    def __init__(self, complete: CompleteFn):
        self._complete = complete
        self._clients: dict[str, _ClientState] = {}

    def submit(self, client_id: str, requests: Sequence[RpcRequest]) -> None:
        """Starts these requests; `poll` returns their responses."""
        client = self._client(client_id)
        for request in requests:
            task = client.tasks[request.request_id] = asyncio.create_task(self._run(client, request))
            # Not the task's own last act: cancelled at once, it never starts.
            task.add_done_callback(lambda _, request_id=request.request_id: client.tasks.pop(request_id))

    async def poll(self, client_id: str) -> list[RpcResponse]:
        """The responses since the last call; waits for the first one, for at most `POLL_S`."""
        client = self._client(client_id)
        if not client.responses:
            client.has_responses.clear()
            try:
                async with asyncio.timeout(POLL_S):
                    await client.has_responses.wait()
            except TimeoutError:
                return []
        responses, client.responses = client.responses, []
        return responses

    def cancel(self, client_id: str, request_id: int) -> None:
        """Cancels a request, if it is still running."""
        if task := self._client(client_id).tasks.get(request_id):
            task.cancel()

    async def _run(self, client: _ClientState, request: RpcRequest) -> None:
        try:
            outcome = await self._complete(
                request.token_ids,
                max_completion_tokens=request.max_completion_tokens,
                temperature=request.temperature,
                seed=request.seed,
            )
        except EngineError as error:
            outcome = error
        except Exception as error:  # a bug of ours: the client must not wait for ever
            outcome = EngineError(f"{type(error).__name__}: {error}")
        client.responses.append(RpcResponse(request.request_id, outcome))
        client.has_responses.set()

    def _client(self, client_id: str) -> _ClientState:
        if client_id not in self._clients:
            self._drop_expired_clients()
            self._clients[client_id] = _ClientState()
        client = self._clients[client_id]
        client.called_at = time.monotonic()
        return client

    def _drop_expired_clients(self) -> None:
        now = time.monotonic()
        for client_id, client in list(self._clients.items()):
            if now - client.called_at > CLIENT_EXPIRES_S:
                for task in client.tasks.values():
                    task.cancel()
                del self._clients[client_id]
