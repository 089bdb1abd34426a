"""What rollouts hold of the policy engines: requests go to engine actors, completions come back."""

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from typing import cast

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.engine import CompletionRequest, EngineError
from actors.trajectory import Completion
from actors.vllm_engine import Sampled


class EngineClient:
    """`PolicyEngine` over one or several engine actors, in turn."""

    def __init__(self, engines: Sequence[ActorHandle], *, timeout_s: float):
        self._engines = itertools.cycle(engines)
        self._timeout_s = timeout_s

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion. Raises `EngineError` where the engine died, failed, or took `timeout_s`."""
        reference = next(self._engines).complete.remote(
            np.asarray(request.token_ids, np.int32),
            max_completion_tokens=request.sampling.max_completion_tokens,
            temperature=request.sampling.temperature,
            seed=request.seed,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                token_ids, logprobs, versions = await cast(Awaitable[Sampled], reference)
        except TimeoutError as error:
            ray.cancel(reference)
            raise EngineError(f"no completion within complete_timeout_s={self._timeout_s:g}") from error
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except RayTaskError as error:
            raise EngineError(str(error.cause)) from error
        except RayError as error:
            raise EngineError(f"the engine is gone: {error}") from error
        return Completion(
            token_ids=token_ids.tolist(), logprobs=logprobs.tolist(), policy_versions=versions.tolist()
        )
