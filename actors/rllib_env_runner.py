"""RLlib's side of a rollout actor: an EnvRunner whose work runs on a background event loop, so that it never
blocks RLlib's own calls. It has no RLModule and no state: the engine holds the weights."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

STOP_TIMEOUT_S = 10.0
T = TypeVar("T")


class AsyncEnvRunner(EnvRunner, Checkpointable):
    """An EnvRunner with an event loop in a thread of its own."""

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()

    def start_task(self, task: Coroutine[Any, Any, T]) -> "Future[T]":
        """Runs `task` on the event loop."""
        return asyncio.run_coroutine_threadsafe(task, self.loop)

    def assert_healthy(self) -> None:
        assert self._thread.is_alive(), "the event loop of the rollouts has ended"

    def stop(self) -> None:
        """Cancels all tasks and ends the event loop."""

        async def cancel() -> None:
            running = asyncio.all_tasks() - {asyncio.current_task()}
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

        self.start_task(cancel()).result(STOP_TIMEOUT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_TIMEOUT_S)

    def get_spaces(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {"__env__": spaces, "__env_single__": spaces, "default_policy": spaces}

    def get_metrics(self) -> dict[str, Any]:
        return {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """No state outlives a dialogue."""

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {"config": self.config}
