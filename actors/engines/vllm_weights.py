"""The weights that one engine serves, and how others take their place while requests are running.

An update is `begin`, then the weights by whatever transport, then `end`. Requests stand still in between, and
nothing new is let in. Knows vLLM's engine by its methods, and no Ray.
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
LOOK_EVERY_S = 1.0
"""How often one who waits for weights looks whether they can still come: vLLM dies without a word."""


class LiveWeights:
    """One engine's gate and its updates. For one event loop, one update at a time."""

    def __init__(self, pause: Callable[[], AbstractContextManager[None]]):
        """`pause` is entered while the engine stands still."""
        self.num_receives = 0
        """Part of every prompt's cache key: no request may reuse keys and values of other weights."""
        self._pause = pause
        self._current_pause = ExitStack()
        self._paused_at = 0.0
        self._are_whole = asyncio.Event()
        self._receiving = asyncio.Lock()

    async def wait(self, *, timeout_s: float, check: Callable[[], object]) -> None:
        """Returns once weights are there, whole: at once, and without a timer, where they are. Raises
        `EngineError` after `timeout_s`, and what `check` raises where waiting is in vain."""
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
                async with asyncio.timeout(min(left_s, LOOK_EVERY_S)):
                    await self._are_whole.wait()

    async def keep(self, engine: "AsyncLLM", *, policy_version: int) -> None:
        """Opens the gate to what the engine holds now."""
        with _as_engine_error(engine, f"weights of version {policy_version}"):
            await engine.update_weight_version(str(policy_version))
        self._are_whole.set()

    def close(self) -> None:
        """Shuts the gate."""
        self._are_whole.clear()

    async def receive_file(
        self, engine: "AsyncLLM", payload: NDArray[np.uint8], *, policy_version: int
    ) -> dict[str, float]:
        """A whole update from the bytes of a safetensors file: they are laid where vLLM's processes can read
        them while requests go on, and loaded by a single call."""
        async with self._receiving:
            start = time.perf_counter()
            with tempfile.NamedTemporaryFile(dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None) as file:
                await asyncio.to_thread(file.write, payload.data)
                file.flush()
                written_s = time.perf_counter() - start
                await self._stop(engine)
                with _as_engine_error(engine, f"weights of version {policy_version}"):
                    await engine.collective_rpc("load_weight_file", args=(file.name,))
                    await self._go_on(engine, policy_version=policy_version)
        return {
            "time/engine_write_s": written_s,
            "time/engine_paused_s": time.perf_counter() - self._paused_at,
        }

    async def connect(self, engine: "AsyncLLM", *, transport: str, init_info: Mapping[str, object]) -> None:
        """Makes `transport` the way by which weights come, and meets the learner there."""
        with _as_engine_error(engine, f"transport {transport}"):
            await engine.collective_rpc("use_transport", args=(transport, dict(init_info)))

    async def begin(self, engine: "AsyncLLM") -> None:
        """Stops the requests and makes vLLM ready for an update by the transport that is connected."""
        await self._stop(engine)
        with _as_engine_error(engine, "weight update"):
            await engine.start_weight_update()

    async def take(self, engine: "AsyncLLM", update_info: bytes) -> None:
        """Takes one part, or all, of the weights."""
        with _as_engine_error(engine, "weight update"):
            await engine.collective_rpc("take_weights", args=(update_info,))

    async def end(self, engine: "AsyncLLM", *, policy_version: int) -> dict[str, float]:
        """Goes on with what was taken."""
        with _as_engine_error(engine, f"weights of version {policy_version}"):
            await engine.finish_weight_update()
            await self._go_on(engine, policy_version=policy_version)
        return {"time/engine_paused_s": time.perf_counter() - self._paused_at}

    async def _stop(self, engine: "AsyncLLM") -> None:
        """Holds the running requests where they are; after a failure, until an update is whole."""
        self.close()
        self._current_pause.close()
        self._current_pause.enter_context(self._pause())
        self._paused_at = time.perf_counter()
        # What AsyncLLM.pause_generation does, without the 20 ms that it sleeps afterwards so that outputs
        # arrive before it returns: each output names its version, whenever it arrives.
        with _as_engine_error(engine, "pause"):
            await engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
            # A request without a token would go on as one of the new version, on a prompt that the old one
            # read or has in the cache. It is handed back, to begin anew.
            states = engine.output_processor.request_states.items()
            await engine.abort([name for name, state in states if state.is_prefilling], internal=True)

    async def _go_on(self, engine: "AsyncLLM", *, policy_version: int) -> None:
        await engine.update_weight_version(str(policy_version))
        await engine.resume_generation()
        self._current_pause.close()
        self.num_receives += 1
        self._are_whole.set()


@contextmanager
def _as_engine_error(engine: "AsyncLLM", what: str) -> Iterator[None]:
    # Whatever vLLM raises: its own classes would make the caller's process import vLLM to read them.
    try:
        yield
    except Exception as error:
        kind = EngineGoneError if engine.errored else EngineError
        raise kind(f"{what}: {error}") from error
