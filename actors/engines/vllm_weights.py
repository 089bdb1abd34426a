"""Weight updates of a running vLLM engine, and the gate that holds requests back until weights are whole.

An update is `begin`, then the weights by any transport, then `end`. In between, running requests are paused
and new ones wait at the gate. Needs no Ray.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.engines.protocol import EngineError, EngineGoneError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_SHARED_MEMORY = Path("/dev/shm")
CHECK_EVERY_S = 1.0
"""How often a request that waits for weights checks whether vLLM is alive: its death raises nothing."""


class LiveWeights:
    """The gate and the updates of one engine. For one event loop, one update at a time."""

    def __init__(self, pause: Callable[[], AbstractContextManager[None]]):
        """`pause` is entered while the engine is paused."""
        self.num_receives = 0
        """Number of updates. Part of every prompt's cache key: no request may reuse keys and values that
        other weights computed."""
        self._pause = pause
        self._current_pause = ExitStack()
        self._paused_at = 0.0
        self._are_whole = asyncio.Event()
        self._receiving = asyncio.Lock()

    async def wait(self, *, timeout_s: float, check: Callable[[], object]) -> None:
        """Waits until the weights are whole; if they are, returns at once and without a timer. Raises
        `EngineError` after `timeout_s`, and what `check` raises if weights cannot come any more."""
        deadline = time.monotonic() + timeout_s
        while not self._are_whole.is_set():
            check()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise EngineError(
                    f"no weights within start_timeout_s={timeout_s:g}: send them with receive() after every "
                    "start"
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, CHECK_EVERY_S)):
                    await self._are_whole.wait()

    async def serve_current(self, engine: "AsyncLLM", *, policy_version: int) -> None:
        """Opens the gate for the weights that the engine holds now."""
        with _as_engine_error(engine, f"weights of version {policy_version}"):
            await engine.update_weight_version(str(policy_version))
        self._are_whole.set()

    def close_gate(self) -> None:
        """Makes new requests wait."""
        self._are_whole.clear()

    async def receive_file(
        self, engine: "AsyncLLM", payload: NDArray[np.uint8], *, policy_version: int
    ) -> dict[str, float]:
        """A whole update from the bytes of a safetensors file: they are written where vLLM's processes can
        read them while requests are running, and loaded by a single call."""
        async with self._receiving:
            start = time.perf_counter()
            with tempfile.NamedTemporaryFile(dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None) as file:
                await asyncio.to_thread(file.write, payload.data)
                file.flush()
                written_s = time.perf_counter() - start
                await self._pause_requests(engine)
                with _as_engine_error(engine, f"weights of version {policy_version}"):
                    await engine.collective_rpc("load_weight_file", args=(file.name,))
                    await self._resume_requests(engine, policy_version=policy_version)
        return {
            "time/engine_write_s": written_s,
            "time/engine_paused_s": time.perf_counter() - self._paused_at,
        }

    async def connect(self, engine: "AsyncLLM", *, transport: str, init_info: Mapping[str, object]) -> None:
        """Makes `transport` the way by which weights are received, and connects to the learner."""
        with _as_engine_error(engine, f"transport {transport}"):
            await engine.collective_rpc("use_transport", args=(transport, dict(init_info)))

    async def begin(self, engine: "AsyncLLM") -> None:
        """Pauses requests and prepares vLLM for an update by the connected transport."""
        await self._pause_requests(engine)
        with _as_engine_error(engine, "weight update"):
            await engine.start_weight_update()

    async def take(self, engine: "AsyncLLM", update_info: bytes) -> None:
        """Loads one part, or all, of the weights."""
        with _as_engine_error(engine, "weight update"):
            await engine.collective_rpc("take_weights", args=(update_info,))

    async def end(self, engine: "AsyncLLM", *, policy_version: int) -> dict[str, float]:
        """Resumes requests under the loaded weights."""
        with _as_engine_error(engine, f"weights of version {policy_version}"):
            await engine.finish_weight_update()
            await self._resume_requests(engine, policy_version=policy_version)
        return {"time/engine_paused_s": time.perf_counter() - self._paused_at}

    async def _pause_requests(self, engine: "AsyncLLM") -> None:
        """Pauses running requests; after a failure, until an update has succeeded."""
        self.close_gate()
        self._current_pause.close()
        self._current_pause.enter_context(self._pause())
        self._paused_at = time.perf_counter()
        # What AsyncLLM.pause_generation does, without the 20 ms that it sleeps afterwards so that outputs
        # arrive before it returns: each output names its version, whenever it arrives.
        with _as_engine_error(engine, "pause"):
            await engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
            # A request without a token would continue as one of the new version, on a prompt that the old
            # weights computed or have in the cache. It is aborted, to start again.
            states = engine.output_processor.request_states.items()
            await engine.abort([name for name, state in states if state.is_prefilling], internal=True)

    async def _resume_requests(self, engine: "AsyncLLM", *, policy_version: int) -> None:
        await engine.update_weight_version(str(policy_version))
        await engine.resume_generation()
        self._current_pause.close()
        self.num_receives += 1
        self._are_whole.set()


@contextmanager
def _as_engine_error(engine: "AsyncLLM", what: str) -> Iterator[None]:
    # Any error of vLLM: its own classes would make the caller's process import vLLM to unpickle them.
    try:
        yield
    except Exception as error:
        kind = EngineGoneError if engine.errored else EngineError
        raise kind(f"{what}: {error}") from error
