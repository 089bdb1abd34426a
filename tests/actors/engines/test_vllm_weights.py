"""An engine actor with a fake in vLLM's place: requests that wait for weights, errors of a dead vLLM, and
detection of a core that hangs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from actors.config import EngineConfig
from actors.engines import vllm_weights
from actors.engines.engine_clock import EngineClock
from actors.engines.protocol import EngineError, EngineGoneError
from actors.engines.vllm_engine import HANG_TIMEOUT_S, STALL_TIMEOUT_S, EngineActor


class Vllm:
    """The part of `AsyncLLM` that an engine actor calls."""

    def __init__(self) -> None:
        self.errored = False
        self.dead_error = "killed"
        self.refuses_weights = self.hangs = False
        self.engine_core = SimpleNamespace(pause_scheduler_async=self._nothing)
        self.output_processor = SimpleNamespace(request_states={})
        self.abort = self.resume_generation = self._nothing
        self.num_started = self.num_closed_unfinished = 0

    async def collective_rpc(self, method: str, args: tuple[object, ...] = ()) -> None:
        if self.errored:
            raise RuntimeError("the core is gone")
        if self.refuses_weights:
            raise ValueError("a parameter is missing")

    async def is_paused(self) -> bool:
        if self.hangs:
            await asyncio.Event().wait()
        return False

    def shutdown(self, timeout: float) -> None:
        self.errored = True

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self.num_started += 1
        try:
            await asyncio.sleep(0)
            yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="stop")])
        except GeneratorExit:
            self.num_closed_unfinished += 1
            raise

    async def start_weight_update(self) -> None:
        await self.collective_rpc("start")

    async def finish_weight_update(self) -> None:
        await self.collective_rpc("finish")

    async def update_weight_version(self, version: str) -> None:
        await self.collective_rpc("update_weight_version")

    async def _nothing(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def vllm() -> Vllm:
    return Vllm()


@pytest.fixture
def actor(vllm: Vllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineActor:
    monkeypatch.setattr(vllm_weights, "CHECK_EVERY_S", 0.01)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    actor = EngineActor(str(tmp_path), EngineConfig(), 0)
    actor._engine = cast(Any, vllm)
    return actor


async def waiting(actor: EngineActor) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(actor._wait_for_weights()) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in tasks)
    return tasks


async def ended(tasks: list[asyncio.Task[None]]) -> list[str]:
    """The results of the waiting tasks, as text."""
    async with asyncio.timeout(30):
        return [str(one) for one in await asyncio.gather(*tasks, return_exceptions=True)]


def payload() -> np.ndarray:
    return np.zeros(8, np.uint8)


async def test_requests_wait_for_whole_weights_even_after_a_failed_update(actor: EngineActor, vllm: Vllm):
    early = await waiting(actor)
    vllm.refuses_weights = True
    with pytest.raises(EngineError, match="weights of version 3: a parameter is missing") as raised:
        await actor.receive(payload(), 3)
    assert raised.type is EngineError, "no other engine could load them"
    late = await waiting(actor)
    vllm.refuses_weights = False
    await actor.receive(payload(), 3)
    assert await ended([*early, *late]) == ["None"] * 6


async def test_requests_that_wait_for_weights_fail_when_vllm_dies(actor: EngineActor, vllm: Vllm):
    await actor.receive(payload(), 0)
    await actor._wait_for_weights()
    await actor._weights._pause_requests(actor._running())
    tasks = await waiting(actor)
    vllm.errored = True
    assert all("vLLM has died: killed" in text for text in await ended(tasks))


@pytest.mark.parametrize(
    "call",
    [
        lambda actor: actor.receive(payload(), 3),
        lambda actor: actor.connect_learner("nccl", {}),
        lambda actor: actor.begin_weights(),
        lambda actor: actor.take_weights(b""),
        lambda actor: actor.end_weights(3),
        lambda actor: actor.serve_own_weights(3),
    ],
)
async def test_a_weight_update_of_a_dead_vllm_raises_engine_gone(
    actor: EngineActor, vllm: Vllm, call: Callable[[EngineActor], Awaitable[object]]
):
    vllm.errored = True
    with pytest.raises(EngineGoneError, match="the core is gone"):
        await call(actor)


async def test_requests_that_wait_for_weights_fail_when_the_engine_is_stopped(actor: EngineActor):
    tasks = await waiting(actor)
    await actor.stop()
    assert all("the engine is not running" in text for text in await ended(tasks))


async def test_the_wait_for_weights_is_limited(actor: EngineActor):
    with pytest.raises(EngineError, match=r"no weights within start_timeout_s=0\.02"):
        await actor._weights.wait(timeout_s=0.02, check=lambda: None)


@pytest.mark.medium
@pytest.mark.parametrize(("works", "limit_s"), [(True, HANG_TIMEOUT_S), (False, STALL_TIMEOUT_S)])
@pytest.mark.parametrize("hangs", [False, True])
async def test_an_idle_core_that_hangs_is_detected(
    actor: EngineActor, vllm: Vllm, hangs: bool, works: bool, limit_s: float
):
    """Sooner where it uses no processor."""
    now, vllm.hangs = [0.0], hangs
    actor._clock = EngineClock(now=lambda: now[0], cpu_seconds=lambda: now[0] if works else 0.0)
    while now[0] < 0.9 * limit_s:
        await actor.check()
        await asyncio.sleep(0.001)
        now[0] += 3.0
    now[0] += 0.4 * limit_s
    with pytest.raises(EngineGoneError, match="vLLM hangs") if hangs else nullcontext():
        await actor.check()


async def test_a_finished_request_is_not_closed_like_a_cancelled_one(actor: EngineActor, vllm: Vllm):
    params: Any = None
    for _ in range(3):
        await actor._sample([1, 2], params=params)
    await asyncio.sleep(0.01)
    assert (vllm.num_started, vllm.num_closed_unfinished) == (3, 0)
