"""`userrl train` with an engine that is a function of prompt, seed and weights, for a test that kills it:
`python -m tests.cluster.killed_run RECIPE`.

One bit of the weights that differs changes what the policy says.
"""

import asyncio
import random
import sys
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actors.config import EngineConfig
from actors.engines.engine_clock import EngineClock, EngineUsage
from actors.engines.rpc import EngineRpcServer, IdArray, RpcRequest, RpcResponse, SampledTokens
from actors.process_info import ProcessInfo, this_process
from actors.renderer import Renderer
from cluster.cli.main import main
from cluster.workers import services
from simulators.message import Action, Choice

QUESTIONS = ("Is it alive?", "Where to?", "1 2 3 4", "How many nights?", "Is it red?")
SAMPLE_S = 0.02
"""Slow enough to be killed in the middle."""


class FunctionEngine:
    """Replaces vLLM's engine actor."""

    def __init__(self, model_folder: str, config: EngineConfig, seed: int):
        self._renderer = Renderer.from_folder(model_folder)
        self._clock = EngineClock()
        self._rpc = EngineRpcServer(self.complete)
        self._weights = 0
        self._version = 0

    async def start(self) -> ProcessInfo:
        return this_process()

    async def complete(
        self, token_ids: IdArray, *, max_completion_tokens: int, temperature: float, seed: int
    ) -> SampledTokens:
        weights, version = self._weights, self._version
        with self._clock.request():
            await asyncio.sleep(SAMPLE_S)
        rng = random.Random(f"{weights} {seed} {zlib.crc32(token_ids.tobytes())}")
        choice: Choice = "answer" if rng.random() < 0.25 else "action"
        ids = self._renderer.completion_of(Action(choice=choice, content=rng.choice(QUESTIONS)))
        logprobs = np.array([-rng.uniform(0.1, 3.0) for _ in ids], np.float32)
        return ids, logprobs, np.full(len(ids), version, np.int32), SAMPLE_S

    async def submit(self, client_id: str, requests: Sequence[RpcRequest]) -> None:
        self._rpc.submit(client_id, requests)

    async def poll(self, client_id: str) -> list[RpcResponse]:
        return await self._rpc.poll(client_id)

    async def cancel(self, client_id: str, request_id: int) -> None:
        self._rpc.cancel(client_id, request_id)

    async def receive(self, payload: NDArray[np.uint8], policy_version: int) -> dict[str, float]:
        self._weights, self._version = zlib.crc32(payload.data), policy_version
        return {"time/receive_weights_s": 0.0}

    async def usage(self) -> EngineUsage:
        return self._clock.read_usage()

    async def check(self) -> None: ...

    async def stop(self) -> None: ...


if __name__ == "__main__":
    setattr(services, "EngineActor", FunctionEngine)  # noqa: B010 - pyright forbids the plain way
    sys.exit(main(["train", sys.argv[1]]))
