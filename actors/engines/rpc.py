"""The line between a rollout process and an engine actor: completions of many dialogues share its calls.

A Ray call a completion costs the two sides 1.2 ms of CPU a turn more than this does. The requests of one
moment travel in one call, and a long poll brings all completions that one step of vLLM finished.
`EngineRpcClient` is the caller's end, `EngineRpcServer` the engine's; each lives on one event loop."""

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
FORGOTTEN_S = 3600.0
"""A caller that has not listened for so long is dead, and what it did not take is given up. Long, since a
process may be stopped for a while; until then a dead one leaves its dialogues' last completions."""


class RpcRequest(NamedTuple):
    """A request for a completion. A tuple, since it is pickled a thousand times a second."""

    ticket: int
    """By which the caller knows the answer."""
    token_ids: IdArray  # [num_prompt_tokens]
    max_completion_tokens: int
    temperature: float
    seed: int


class RpcResponse(NamedTuple):
    """What became of a request."""

    ticket: int
    outcome: SampledTokens | EngineError
    """A `RequestError` where the request is at fault."""


CompleteFn = Callable[..., Awaitable[SampledTokens]]
"""(token_ids, max_completion_tokens=, temperature=, seed=) to a completion. Raises EngineError."""


class EngineRpcClient:
    """The caller's end."""

    def __init__(self, engine: Any):
        """`engine`: the handle of an actor with the methods of `EngineRpcServer`."""
        self._engine = engine
        self._name = uuid.uuid4().hex
        self._tickets = itertools.count()
        self._futures: dict[int, asyncio.Future[SampledTokens]] = {}
        """What is waited for, by ticket."""
        self._unsent: list[RpcRequest] = []
        self._begun: dict[int, Awaitable[None]] = {}
        """The call in which a request was sent, by ticket, while nobody knows whether it arrived."""
        self._looks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None

    async def complete(self, request: CompletionRequest) -> SampledTokens:
        """Samples one completion; cancelled, it gives the request up. Raises EngineError where the engine
        failed it, and RayError where the engine is gone."""
        loop, ticket = asyncio.get_running_loop(), next(self._tickets)
        future = self._futures[ticket] = loop.create_future()
        sampling = request.sampling
        self._unsent.append(
            RpcRequest(
                ticket, request.token_ids, sampling.max_completion_tokens, sampling.temperature, request.seed
            )
        )
        if len(self._unsent) == 1:
            loop.call_soon(self._send)
        if self._listening is None:
            self._listening = loop.create_task(self._listen())
        try:
            return await future
        except asyncio.CancelledError:
            self._engine.hang_up.remote(self._name, ticket)
            raise
        finally:
            self._futures.pop(ticket, None)
            self._begun.pop(ticket, None)

    def _send(self) -> None:
        asks, self._unsent = [ask for ask in self._unsent if ask.ticket in self._futures], []
        if not asks:  # all were given up at once
            return
        tickets = [ask.ticket for ask in asks]
        try:
            call = cast(Awaitable[None], self._engine.begin.remote(self._name, asks))
        except Exception as error:  # one cannot be pickled, say: they must not wait for what was never sent
            self._fail(tickets, EngineError(f"not sent: {type(error).__name__}: {error}"))
        else:
            self._begun.update(dict.fromkeys(tickets, call))

    async def _listen(self) -> None:
        """Consumes answers while any is waited for."""
        looked_at = time.monotonic()
        try:
            while self._futures:
                poll = self._engine.answers.remote(self._name)
                for answer in await cast(Awaitable[list[RpcResponse]], poll):
                    self._take(answer)
                if time.monotonic() - looked_at > POLL_S:
                    self._look_at_begun()
                    looked_at = time.monotonic()
        except Exception as error:  # Ray's: the engine is gone, and every request with it
            self._fail(list(self._futures), error)
        finally:
            self._listening = None

    def _take(self, answer: RpcResponse) -> None:
        future = self._futures.pop(answer.ticket, None)
        if future is None or future.done():
            return
        if isinstance(answer.outcome, EngineError):
            future.set_exception(answer.outcome)
        else:
            future.set_result(answer.outcome)

    def _look_at_begun(self) -> None:
        """Looks at each call once, where a request of it still waits: one that failed brings no answers. Not
        when it is made: that would cost as much as a poll."""
        tickets: defaultdict[Awaitable[None], list[int]] = defaultdict(list)
        for ticket, call in self._begun.items():
            tickets[call].append(ticket)
        self._begun.clear()
        for call, sent in tickets.items():
            look = asyncio.create_task(self._look(call, sent))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def _look(self, call: Awaitable[None], tickets: Sequence[int]) -> None:
        try:
            await call
        except Exception as error:  # Ray's
            self._fail(tickets, error)

    def _fail(self, tickets: Sequence[int], error: Exception) -> None:
        for ticket in tickets:
            future = self._futures.get(ticket)
            if future is not None and not future.done():
                future.set_exception(error)


class _ClientState:
    """What the engine holds for one caller."""

    def __init__(self) -> None:
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """Running requests by ticket."""
        self.answers: list[RpcResponse] = []
        self.arrived = asyncio.Event()
        self.heard_at = time.monotonic()


class EngineRpcServer:
    """The engine's end of all its lines."""

    def __init__(self, complete: CompleteFn):
        self._complete = complete
        self._boxes: dict[str, _ClientState] = {}

    def begin(self, line: str, asks: Sequence[RpcRequest]) -> None:
        """Begins these requests; their answers come by `answers`."""
        box = self._box(line)
        for ask in asks:
            task = box.tasks[ask.ticket] = asyncio.create_task(self._answer(box, ask))
            # Not the task's own last act: given up at once, it never begins.
            task.add_done_callback(lambda _, ticket=ask.ticket: box.tasks.pop(ticket))

    async def answers(self, line: str) -> list[RpcResponse]:
        """What was finished since the last call; waits for the first, for a limited time."""
        box = self._box(line)
        if not box.answers:
            box.arrived.clear()
            try:
                async with asyncio.timeout(POLL_S):
                    await box.arrived.wait()
            except TimeoutError:
                return []
        taken, box.answers = box.answers, []
        return taken

    def hang_up(self, line: str, ticket: int) -> None:
        """Gives a request up, if it still runs."""
        if task := self._box(line).tasks.get(ticket):
            task.cancel()

    async def _answer(self, box: _ClientState, ask: RpcRequest) -> None:
        try:
            sampled = await self._complete(
                ask.token_ids,
                max_completion_tokens=ask.max_completion_tokens,
                temperature=ask.temperature,
                seed=ask.seed,
            )
            answer = RpcResponse(ask.ticket, sampled)
        except EngineError as error:
            answer = RpcResponse(ask.ticket, error)
        except Exception as error:  # a bug of ours: it must not leave the caller waiting
            answer = RpcResponse(ask.ticket, EngineError(f"{type(error).__name__}: {error}"))
        box.answers.append(answer)
        box.arrived.set()

    def _box(self, line: str) -> _ClientState:
        if line not in self._boxes:
            self._sweep()
            self._boxes[line] = _ClientState()
        box = self._boxes[line]
        box.heard_at = time.monotonic()
        return box

    def _sweep(self) -> None:
        """Forgets the dead, whenever somebody new calls."""
        now = time.monotonic()
        for name, box in list(self._boxes.items()):
            if now - box.heard_at > FORGOTTEN_S:
                for task in box.tasks.values():
                    task.cancel()
                del self._boxes[name]
