"""The policy engine: a Ray actor that owns one vLLM `AsyncLLM`. Rollouts reach it through `engine_client`.

Token ids in, sampled ids with their logprobs and policy versions out. It knows no messages and no learner.
Stale gate: nothing is served before the first weights have been received, nor while weights are received.
"""

import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.config import EngineConfig
from actors.engine import EngineError
from actors.vllm_settings import engine_args, read_stop_token_ids, set_environment

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

TokenIds = NDArray[np.int32]
Sampled = tuple[TokenIds, NDArray[np.float32], TokenIds]
"""(token_ids, logprobs, policy_versions), each [num_tokens]."""

_SHARED_MEMORY = Path("/dev/shm")


class EngineActor:
    """One vLLM engine. Runs as an async Ray actor with a high `max_concurrency`; vLLM does the batching."""

    def __init__(self, model_folder: str, config: EngineConfig, seed: int):
        self._model_folder = model_folder
        self._config = config
        self._seed = seed
        self._stop_token_ids = read_stop_token_ids(Path(model_folder))
        self._engine: AsyncLLM | None = None
        self._current = asyncio.Event()
        self._receiving = asyncio.Lock()
        self._num_receives = 0
        self._request_ids = itertools.count()

    async def start(self) -> float:
        """Starts vLLM and samples once, so that the first completion is as fast as the next. Seconds."""
        start = time.perf_counter()
        set_environment(self._config)
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(
            engine_args(self._model_folder, self._config, seed=self._seed)
        )
        await self._sample([0], params=self._params(max_tokens=2, temperature=1.0, seed=0))
        return time.perf_counter() - start

    async def complete(
        self, token_ids: TokenIds, *, max_completion_tokens: int, temperature: float, seed: int
    ) -> Sampled:
        """Samples one completion of `token_ids` [num_prompt_tokens], its stop token included.

        Logprobs are of the distribution sampled from: after temperature, with no top-k or top-p. At
        temperature 0 they are those of temperature 1. Waits while weights are received. Raises EngineError.
        """
        await self._wait_for_weights()
        params = self._params(max_tokens=max_completion_tokens, temperature=temperature, seed=seed)
        output = (await self._sample(token_ids.tolist(), params=params)).outputs[0]
        if output.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM gave up a completion: {output.finish_reason}")
        sampled = np.asarray(output.token_ids, np.int32)
        spans = output.weight_versions or []
        versions = np.repeat([int(span.version) for span in spans], [span.end - span.start for span in spans])
        assert len(versions) == len(sampled), f"{spans} do not cover {len(sampled)} tokens"
        return sampled, _flat(output.logprobs), versions.astype(np.int32)

    async def score(self, token_ids: TokenIds) -> NDArray[np.float32]:
        """Logprobs [num_tokens - 1] of all tokens but the first, at temperature 1, under the current weights.

        Reads nothing from the prefix cache. Takes at most max_model_len - 1 tokens.
        """
        await self._wait_for_weights()
        params = self._params(max_tokens=1, temperature=1.0, seed=0, prompt_logprobs=0)
        output = await self._sample(token_ids.tolist(), params=params)
        return _flat(output.prompt_logprobs)

    async def receive(self, payload: NDArray[np.uint8], policy_version: int) -> dict[str, float]:
        """Loads weights in flight: running requests stop, and go on with them. Raises EngineError.

        `payload` [num_bytes] is a safetensors file of the whole policy. After a failure nothing is served
        until weights have been received whole.
        """
        async with self._receiving:
            self._current.clear()
            start = time.perf_counter()
            with tempfile.NamedTemporaryFile(dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None) as file:
                await asyncio.to_thread(file.write, payload.data)
                file.flush()
                written = time.perf_counter()
                await self._load(file.name, policy_version=policy_version)
            # Part of every prompt's cache key: no request may reuse keys and values of other weights.
            self._num_receives += 1
            self._current.set()
        end = time.perf_counter()
        return {"time/engine_write_s": written - start, "time/engine_paused_s": end - written}

    async def keep_own_weights(self, policy_version: int) -> None:
        """Serves the weights that the model folder holds, where no learner will send any: evaluation of a
        finished model."""
        await self._running().update_weight_version(str(policy_version))
        self._current.set()

    async def check(self) -> None:
        """Raises `EngineError` where vLLM has died: its actor lives on, but every completion fails."""
        if self._running().errored:
            raise EngineError(
                f"vLLM has died: {self._running().dead_error}; its log is under the Ray session's logs"
            )

    async def stop(self) -> None:
        """Ends vLLM and its processes; running completions fail."""
        self._current.clear()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown, 10.0)
            self._engine = None

    async def _load(self, path: str, *, policy_version: int) -> None:
        """vLLM's weight update, from pause to resume; another transport changes only `update_info`."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        engine = self._running()
        try:
            await engine.pause_generation(mode="keep", clear_cache=False)
            await engine.start_weight_update()
            await engine.update_weights(WeightTransferUpdateRequest(update_info={"path": path}))
            await engine.finish_weight_update(weight_version=str(policy_version))
            await engine.resume_generation()
        except Exception as error:
            raise EngineError(f"weights of version {policy_version}: {error}") from error

    async def _wait_for_weights(self) -> None:
        self._running()
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                await self._current.wait()
        except TimeoutError as error:
            limit = f"start_timeout_s={self._config.start_timeout_s:g}"
            raise EngineError(
                f"no weights within {limit}: send them with receive() after every start"
            ) from error

    def _params(
        self, *, max_tokens: int, temperature: float, seed: int, prompt_logprobs: int | None = None
    ) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            logprobs=0,  # the sampled token's only
            prompt_logprobs=prompt_logprobs,
            flat_logprobs=True,
            stop_token_ids=self._stop_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    async def _sample(self, token_ids: list[int], *, params: "SamplingParams") -> "RequestOutput":
        from vllm.inputs.engine import tokens_input

        prompt = tokens_input(token_ids, cache_salt=str(self._num_receives))
        engine, request_id = self._running(), str(next(self._request_ids))
        try:
            async for output in engine.generate(prompt, params, request_id=request_id):
                if output.finished:
                    return output
        # Whatever vLLM raises: its own classes would make the caller's process import vLLM to read them.
        except Exception as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error
        raise EngineError("vLLM ended a request without an output")

    def _running(self) -> "AsyncLLM":
        if self._engine is None:
            raise EngineError("the engine is not running: call start() first, and nothing after stop()")
        return self._engine


def _flat(logprobs: object) -> NDArray[np.float32]:
    """One logprob a token, out of vLLM's flat form."""
    from vllm.logprobs import FlatLogprobs

    assert isinstance(logprobs, FlatLogprobs)
    return np.asarray(logprobs.logprobs, np.float32)
