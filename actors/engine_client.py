"""What rollouts hold of the policy engines: requests go to engine actors, completions come back.

A dialogue stays with one engine: each prompt begins with the turns before it, and only the engine that
computed those has them in its prefix cache. Load is what this client itself has in flight; with several
rollout actors none knows the others', and their sums even out.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.engine import CompletionRequest, EngineError, RequestError
from actors.engine_line import EngineLine
from actors.trajectory import Completion

MOST_DIALOGUES = 65536
"""Dialogues whose engine is remembered; far more than are in flight. One that is forgotten only loses its
cached prefix."""
AVOIDED_S = 30.0
"""Seconds in which an engine that failed gets no dialogue, if there is another."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Route:
    """One engine, as this client sees it."""

    line: EngineLine
    num_running: int = 0
    """Completions of this client in flight there."""
    num_dialogues: int = 0
    """Dialogues sent there so far; decides between equal loads."""
    avoided_until: float = 0.0
    """By `time.monotonic`."""


class _EngineFailure(Exception):
    """One engine gave no completion; another may."""


class EngineClient:
    """`PolicyEngine` over one or several engine actors. A dialogue's first turn goes to the least loaded, the
    rest to the same one, unless it fails."""

    def __init__(self, engines: Sequence[ActorHandle], *, timeout_s: float):
        self._routes = [_Route(line=EngineLine(engine)) for engine in engines]
        self._timeout_s = timeout_s
        self._routes_of: OrderedDict[int, _Route] = OrderedDict()
        """By dialogue, the longest unused first."""

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion; where an engine fails, the next one is asked. Raises `EngineError` where
        all failed, or one took `timeout_s`, or the request is at fault."""
        failed: list[_Route] = []
        while True:
            route = self._route(request.dialogue, failed=failed)
            route.num_running += 1
            try:
                return await self._ask(route.line, request)
            except _EngineFailure as failure:
                route.avoided_until = time.monotonic() + AVOIDED_S
                failed.append(route)
                if len(failed) == len(self._routes):
                    raise EngineError(str(failure)) from failure.__cause__
            except RequestError:
                raise
            except EngineError:  # it took too long: who comes next is asked elsewhere
                route.avoided_until = time.monotonic() + AVOIDED_S
                raise
            finally:
                route.num_running -= 1

    def _route(self, dialogue: int | None, *, failed: Sequence[_Route]) -> _Route:
        """Where this dialogue's next completion is asked for; not of those that `failed` to give it."""
        now = time.monotonic()
        route = None if dialogue is None else self._routes_of.get(dialogue)
        if route is None or route in failed or route.avoided_until > now:
            route = min(
                (one for one in self._routes if one not in failed),
                key=lambda one: (one.avoided_until > now, one.num_running, one.num_dialogues),
            )
            route.num_dialogues += 1
        if dialogue is not None:
            self._routes_of[dialogue] = route
            self._routes_of.move_to_end(dialogue)
            if len(self._routes_of) > MOST_DIALOGUES:
                self._routes_of.popitem(last=False)
        return route

    async def _ask(self, line: EngineLine, request: CompletionRequest) -> Completion:
        """Raises `_EngineFailure` where another engine might do better."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                token_ids, logprobs, versions, policy_s = await line.complete(request)
        except TimeoutError as error:
            raise EngineError(f"no completion within complete_timeout_s={self._timeout_s:g}") from error
        except RequestError:
            raise
        except EngineError as error:
            raise _EngineFailure(str(error)) from error
        except RayError as error:
            raise _EngineFailure(f"the engine is gone: {error}") from error
        waited_s = time.perf_counter() - began
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            policy_versions=versions,
            queue_s=max(0.0, waited_s - policy_s),
        )
