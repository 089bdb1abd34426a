"""The policy engine: a Ray actor that owns one vLLM `AsyncLLM`. Rollout actors call it through
`EngineClient`.

Token ids in, sampled ids with their logprobs and policy versions out; it knows neither messages nor learners.
Nothing is served before the first weights have been received, nor while weights are being received.
"""

import asyncio
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.config import EngineConfig
from actors.engines.engine_clock import EngineClock, EngineUsage
from actors.engines.protocol import EngineError, EngineGoneError
from actors.engines.rpc import EngineRpcServer, IdArray, RpcRequest, RpcResponse, SampledTokens
from actors.engines.vllm_requests import as_engine_error, flat_logprobs, sampling_params, versions_of
from actors.engines.vllm_settings import (
    ACTOR_NICENESS,
    engine_args,
    is_on_cpu,
    read_stop_token_ids,
    set_environment,
    timestamp_logger,
)
from actors.engines.vllm_weights import LiveWeights
from actors.gc_freeze import freeze_heap
from actors.process_info import ProcessInfo, this_process
from actors.renderer import Renderer

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.inputs.engine import TokensInput
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

HANG_TIMEOUT_S = 60.0
"""vLLM hangs if it has requests and ends no step for so long: a step takes a fraction of a second, or some
tens of seconds if it compiles a kernel first."""
STALL_TIMEOUT_S = 15.0
"""On CPU it also hangs if it has requests, ends no step and uses no processor for so long. On GPU it may
sleep while it waits for the GPU."""
KILLED = re.compile(r"proc\(s\): \{[^}]*: -\d")
"""Part of vLLM's error if a signal has ended one of its processes: the signal's number, negative."""


class EngineActor:
    """One vLLM engine. Runs as an async Ray actor with a high `max_concurrency`; vLLM does the batching."""

    def __init__(self, model_folder: str, config: EngineConfig, seed: int):
        self._model_folder = model_folder
        self._config = config
        self._seed = seed
        self._stop_token_ids = _stop_token_ids(Path(model_folder))
        self._engine: AsyncLLM | None = None
        self._clock = EngineClock()
        self._weights = LiveWeights(self._clock.pause)
        self._ping: asyncio.Task[None] | None = None
        """The latest ping of an idle core; held here, since an event loop holds its tasks weakly."""
        self._request_ids = itertools.count()
        self._rpc = EngineRpcServer(self.complete)

    async def start(self) -> ProcessInfo:
        """Starts vLLM and samples once, so that the first completion is as fast as the next. Returns this
        process and its children."""
        set_environment(self._config)
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            self._engine = AsyncLLM.from_engine_args(
                engine_args(self._model_folder, self._config, seed=self._seed),
                stat_loggers=[timestamp_logger(self._clock.step)],
            )
        except RuntimeError as error:
            if KILLED.search(str(error)):
                raise EngineGoneError("vLLM was killed while it started") from error
            raise
        await self._sample([0], params=self._params(max_tokens=2, temperature=1.0, seed=0))
        freeze_heap()
        _yield_to_core()
        return this_process()

    async def complete(
        self, token_ids: IdArray, *, max_completion_tokens: int, temperature: float, seed: int
    ) -> SampledTokens:
        """Samples one completion of `token_ids` [num_prompt_tokens], its stop token included.

        Logprobs are of the distribution sampled from: after temperature, with no top-k or top-p. At
        temperature 0 they are those of temperature 1. Waits while weights are received. Raises EngineError.
        """
        with self._clock.request():
            await self._wait_for_weights()
            params = self._params(max_tokens=max_completion_tokens, temperature=temperature, seed=seed)
            result = await self._sample(token_ids.tolist(), params=params)
        output = result.outputs[0]
        if output.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM aborted a completion: {output.finish_reason}")
        sampled = np.asarray(output.token_ids, np.int32)
        versions = versions_of(output.weight_versions or [], num_tokens=len(sampled))
        return sampled, flat_logprobs(output.logprobs), versions, self._computed_s(result)

    async def submit(self, client_id: str, requests: Sequence[RpcRequest]) -> None:
        """`complete` for many requests, whose responses `poll` returns: see `EngineRpcServer`."""
        self._rpc.submit(client_id, requests)

    async def poll(self, client_id: str) -> list[RpcResponse]:
        return await self._rpc.poll(client_id)

    async def cancel(self, client_id: str, request_id: int) -> None:
        self._rpc.cancel(client_id, request_id)

    async def score(self, token_ids: IdArray) -> NDArray[np.float32]:
        """Logprobs [num_tokens - 1] of all tokens but the first, at temperature 1, under the current weights.

        Reads nothing from the prefix cache. Takes at most max_model_len - 1 tokens.
        """
        with self._clock.request():
            await self._wait_for_weights()
            params = self._params(max_tokens=1, temperature=1.0, seed=0, prompt_logprobs=0)
            output = await self._sample(token_ids.tolist(), params=params)
        return flat_logprobs(output.prompt_logprobs)

    async def receive(self, payload: NDArray[np.uint8], policy_version: int) -> dict[str, float]:
        """Loads new weights while requests are running: they pause and continue under the new ones. Raises
        EngineError.

        `payload` [num_bytes] is a safetensors file of the whole policy. After a failed load nothing is served
        until whole weights have been received.
        """
        return await self._weights.receive_file(self._running(), payload, policy_version=policy_version)

    async def connect_learner(self, transport: str, init_info: Mapping[str, object]) -> None:
        """Connects to the learner's GPU by `transport`: the first of the four calls of vLLM's own protocol of
        weight updates; `init_info` is vLLM's. All four raise EngineError."""
        await self._weights.connect(self._running(), transport=transport, init_info=init_info)

    async def begin_weights(self) -> None:
        """Pauses running requests. Until `end_weights` nothing is served."""
        await self._weights.begin(self._running())

    async def take_weights(self, update_info: bytes) -> None:
        """Loads a part of the weights, or all of them, as described by vLLM's pickled `update_info`."""
        await self._weights.take(self._running(), update_info)

    async def end_weights(self, policy_version: int) -> dict[str, float]:
        """Resumes running requests under the loaded weights."""
        return await self._weights.end(self._running(), policy_version=policy_version)

    async def serve_own_weights(self, policy_version: int) -> None:
        """Serves the weights of the model folder, for the evaluation of a finished model without a
        learner."""
        await self._weights.serve_current(self._running(), policy_version=policy_version)

    async def usage(self) -> EngineUsage:
        """The engine's usage since the last call."""
        return self._clock.read_usage()

    async def check(self) -> None:
        """Raises `EngineGoneError` if vLLM has died or hangs: this actor survives, but serves nothing any
        more. An idle core is pinged, and the next checks tell whether it has answered."""
        self._raise_if_dead()
        is_stalled = self._clock.check_stalled_s() > STALL_TIMEOUT_S and is_on_cpu()
        if is_stalled or self._clock.silent_s > HANG_TIMEOUT_S:
            text = f"vLLM hangs: it has requests and has ended no step for {self._clock.silent_s:.0f} s"
            raise EngineGoneError(text)
        if self._clock.is_core_idle:
            self._ping = asyncio.create_task(self._ping_core())

    async def _ping_core(self) -> None:
        """Gives an idle core something to do: the clock tells whether it is done."""
        with self._clock.core_call(), suppress(Exception):  # `check` detects a dead one
            await self._running().is_paused()

    async def stop(self) -> None:
        """Ends vLLM and its processes; running completions fail."""
        self._weights.close_gate()
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown, 10.0)

    async def _wait_for_weights(self) -> None:
        self._running()
        await self._weights.wait(timeout_s=self._config.start_timeout_s, check=self._raise_if_dead)

    def _raise_if_dead(self) -> None:
        engine = self._running()
        if engine.errored:
            text = f"vLLM has died: {engine.dead_error}; its log is under the Ray session's logs"
            raise EngineGoneError(text)

    def _params(
        self, *, max_tokens: int, temperature: float, seed: int, prompt_logprobs: int | None = None
    ) -> "SamplingParams":
        return sampling_params(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop_token_ids=self._stop_token_ids,
            prompt_logprobs=prompt_logprobs,
        )

    async def _sample(self, token_ids: list[int], *, params: "SamplingParams") -> "RequestOutput":
        """Starts again if weights change before the first token."""
        while True:
            num_receives = self._weights.num_receives
            result = await self._generate(token_ids, params=params, cache_salt=str(num_receives))
            if result.outputs[0].finish_reason != "abort":
                return result
            await self._wait_for_weights()
            if self._weights.num_receives == num_receives:
                raise EngineError("vLLM aborted a request")

    async def _generate(
        self, token_ids: list[int], *, params: "SamplingParams", cache_salt: str
    ) -> "RequestOutput":
        prompt: TokensInput = {"type": "token", "prompt_token_ids": token_ids, "cache_salt": cache_salt}
        engine, request_id = self._running(), str(next(self._request_ids))
        result = None
        try:
            # To its end: a generator that is left after its last output is closed by another task, as if the
            # request had been cancelled.
            with self._clock.core_call():
                async for output in engine.generate(prompt, params, request_id=request_id):
                    result = output
        except Exception as error:
            raise as_engine_error(error) from error
        if result is None:
            raise EngineError("vLLM ended a request without an output")
        return result

    def _computed_s(self, result: "RequestOutput") -> float:
        """Seconds from vLLM's first work on a request to its last token, without pauses for weights."""
        stamps = result.metrics
        assert stamps is not None, "vLLM was started without its statistics"
        return self._clock.computed_s(stamps.scheduled_ts, stamps.last_token_ts)

    def _running(self) -> "AsyncLLM":
        if self._engine is None:
            raise EngineError("the engine is not running: call start() first, and nothing after stop()")
        return self._engine


def _yield_to_core() -> None:
    """Lowers this process's priority below that of vLLM's core, its child: if processors are scarce, a core
    that waits for one makes the whole batch wait."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it may end in between
            niceness = os.getpriority(os.PRIO_PROCESS, int(thread.name))
            os.setpriority(os.PRIO_PROCESS, int(thread.name), max(niceness, ACTOR_NICENESS))


def _stop_token_ids(model_folder: Path) -> tuple[int, ...]:
    """The model's own ids that end a completion, and that of the token with which its chat template does."""
    ids = set(read_stop_token_ids(model_folder))
    if (model_folder / "tokenizer_config.json").is_file():
        ids.add(Renderer.from_folder(model_folder).stop_id)
    return tuple(sorted(ids))
