"""Client of the served simulated users: a `User` on top of a Ray Serve handle, with retries when a replica
dies.

Serve does not retry a request whose replica died; this client does. A call contains its whole history, so any
replica can answer it and a retry has no side effect.
"""

import asyncio
import dataclasses
import random
import time
from collections.abc import Sequence

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from simulators.config import SimulatorConfig
from simulators.user import RULES, Failure, SimulatorError, UserCall, UserReply

PendingReply = asyncio.Future[UserReply | SimulatorError]

MAX_CALLS_PER_REQUEST = 64
COALESCE_S = 0.005
"""Calls of one event loop within this time are sent as one request. A request costs client and replica 1 to 2
ms of CPU each, a call in it 0.04 ms; the wait is short compared to a turn."""


class ServeUser:
    """A `User` behind Serve: timeout, retries, and batching of concurrent calls into one request."""

    def __init__(self, handle: DeploymentHandle, config: SimulatorConfig):
        self._handle = handle
        self._config = config
        self._queue: list[tuple[UserCall, PendingReply]] = []
        self._requests: set[asyncio.Task[None]] = set()

    async def reply(self, call: UserCall) -> UserReply:
        """The reply. Raises `SimulatorError`: at once for the user's own error, else after the last try."""
        began = time.monotonic()
        problem: Exception | None = None
        for num_retries in range(self._config.max_retries + 1):
            if num_retries:
                # Full jitter, so that the callers of a dead replica do not retry at the same time.
                await asyncio.sleep(random.uniform(0, 2 * self._config.backoff_s) * 2 ** (num_retries - 1))
            try:
                reply = await self._enqueue(call)
            except (RayError, RayServeException, TimeoutError) as error:
                problem = error
                continue
            if isinstance(reply, SimulatorError):
                raise reply
            return dataclasses.replace(reply, latency_s=time.monotonic() - began, num_retries=num_retries)
        first_line = str(problem).partition("\n")[0] or f"no reply within {self._config.timeout_s} s"
        tries = self._config.max_retries + 1
        raise SimulatorError(
            f"{call.gym}: no reply in {tries} tries: {type(problem).__name__}: {first_line}",
            Failure.TIMEOUT if isinstance(problem, TimeoutError) else Failure.ERROR,
            RULES,
        )

    def _enqueue(self, call: UserCall) -> PendingReply:
        loop = asyncio.get_running_loop()
        future: PendingReply = loop.create_future()
        self._queue.append((call, future))
        if len(self._queue) >= MAX_CALLS_PER_REQUEST:
            self._flush()
        elif len(self._queue) == 1:
            loop.call_later(COALESCE_S, self._flush)
        return future

    def _flush(self) -> None:
        if not self._queue:
            return
        batch, self._queue = self._queue, []
        task = asyncio.create_task(self._request(batch))
        self._requests.add(task)  # the event loop holds only weak references to tasks
        task.add_done_callback(self._requests.discard)

    async def _request(self, batch: list[tuple[UserCall, PendingReply]]) -> None:
        """Sends one request within the timeout and delivers its result or error to every call of the
        batch."""
        replies: Sequence[UserReply | SimulatorError]
        try:
            response = self._handle.reply.remote([call for call, _ in batch])
            async with asyncio.timeout(self._config.timeout_s):
                replies = await response
        except Exception as error:  # passed to the callers, which decide on retries
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), reply in zip(batch, replies, strict=True):
            if not future.done():
                future.set_result(reply)
