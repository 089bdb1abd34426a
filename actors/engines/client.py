"""Client of the policy engines, one per rollout actor: routes completion requests to engine actors and
retries them on another engine after a failure.

A dialogue stays with one engine: each prompt begins with the turns before it, which only the engine that
computed them has in its prefix cache. Load is what this client itself has in flight; with several rollout
actors none knows the others' load, and the sums even out.

Engines join and leave during a run: `update` brings the current set. A request holds its whole prompt, so a
completion that died with its engine is retried on another one, or on the replacement, and nothing of the
dialogue is lost.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.engines.protocol import CompletionRequest, EngineError, EngineGoneError, RequestError
from actors.engines.rpc import EngineRpcClient
from actors.trajectory import Completion

MAX_DIALOGUES = 65536
"""Dialogues whose engine is remembered; far more than are in flight. One that is forgotten only loses its
cached prefix."""
AVOIDED_S = 30.0
"""Seconds in which an engine that failed gets no dialogue, if there is another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSet:
    """The engines that serve, at one moment. A later set replaces an earlier one, in whatever order they
    arrive."""

    version: int
    """Grows with every change."""
    engines: tuple[ActorHandle, ...]  # [num_engines]
    """Each has the live weights. Empty while the only engine is being replaced."""
    capacity: float
    """Sequences that they compute at once for one rollout actor; inf if unknown."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Route:
    """This client's state of one engine."""

    engine: ActorHandle
    rpc: EngineRpcClient
    is_removed: bool = False
    """Whether the engine has left the run."""
    num_running: int = 0
    """Completions of this client in flight there."""
    num_dialogues: int = 0
    """Dialogues sent there so far; decides between equal loads."""
    avoided_until: float = 0.0
    """By `time.monotonic`."""


class EngineClient:
    """A `PolicyEngine` over any number of engine actors. A dialogue's first turn goes to the least loaded
    engine, the others to the same one, unless it fails."""

    def __init__(self, engines: Sequence[ActorHandle], *, timeout_s: float):
        self._routes = [_route_to(engine) for engine in engines]
        self._version = -1
        """Of the newest set of engines."""
        self._updated = asyncio.Event()
        self._timeout_s = timeout_s
        self._routes_of: OrderedDict[int, _Route] = OrderedDict()
        """By dialogue, the least recently used first."""

    def update(self, engines: EngineSet) -> None:
        """Sends requests to these engines from now on. Requests in flight at a removed engine may finish
        there."""
        if engines.version <= self._version:
            return
        self._version = engines.version
        known = {route.engine: route for route in self._routes}
        self._routes = [known.pop(engine, None) or _route_to(engine) for engine in engines.engines]
        for route in known.values():
            route.is_removed = True
        self._updated.set()
        self._updated = asyncio.Event()

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion. If an engine fails, the next one is tried; if all are gone, their
        replacement. Raises `EngineError` if all failed, if one took longer than `timeout_s`, if no
        replacement came within it, or if the request is at fault."""
        failures: dict[_Route, EngineError] = {}
        began = time.perf_counter()
        while True:
            if all(route in failures for route in self._routes):
                await self._wait_for_another(failures)
            route = self._route(request.dialogue, failed=failures)
            route.num_running += 1
            try:
                async with asyncio.timeout(self._timeout_s):
                    token_ids, logprobs, versions, policy_s = await route.rpc.complete(request)
                break
            except RequestError:
                raise
            except TimeoutError as error:  # this request has used up its time; later ones go elsewhere
                route.avoided_until = time.monotonic() + AVOIDED_S
                raise EngineError(f"no completion within complete_timeout_s={self._timeout_s:g}") from error
            except (EngineError, RayError) as error:
                route.avoided_until = time.monotonic() + AVOIDED_S
                is_known = isinstance(error, EngineError)
                failures[route] = error if is_known else EngineGoneError(f"the engine is gone: {error}")
            finally:
                route.num_running -= 1
        waited_s = time.perf_counter() - began
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            policy_versions=versions,
            queue_s=max(0.0, waited_s - policy_s),
        )

    async def _wait_for_another(self, failures: Mapping[_Route, EngineError]) -> None:
        """Returns when there is an engine that has not failed. Raises `EngineError` if none is expected."""
        errors = list(failures.values()) or [EngineGoneError("there is no engine")]
        if not any(isinstance(error, EngineGoneError) for error in errors):
            raise EngineError(str(errors[-1])) from errors[-1]
        try:
            async with asyncio.timeout(self._timeout_s):
                while all(route in failures for route in self._routes):
                    await self._updated.wait()
        except TimeoutError:
            text = f"{errors[-1]}; no replacement within {self._timeout_s:g} s"
            raise EngineError(text) from errors[-1]

    def _route(self, dialogue: int | None, *, failed: Container[_Route]) -> _Route:
        """The engine for this dialogue's next completion; none of those that `failed`."""
        now = time.monotonic()
        route = None if dialogue is None else self._routes_of.get(dialogue)
        if route is None or route.is_removed or route in failed or route.avoided_until > now:
            route = min(
                (one for one in self._routes if one not in failed),
                key=lambda one: (one.avoided_until > now, one.num_running, one.num_dialogues),
            )
            route.num_dialogues += 1
        if dialogue is not None:
            self._routes_of[dialogue] = route
            self._routes_of.move_to_end(dialogue)
            if len(self._routes_of) > MAX_DIALOGUES:
                self._routes_of.popitem(last=False)
        return route


def _route_to(engine: ActorHandle) -> _Route:
    return _Route(engine=engine, rpc=EngineRpcClient(engine))
