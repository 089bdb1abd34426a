"""Fan-out calls to the rollout actors with a 10 s deadline.

An actor that misses it is marked unresponsive and skipped until it answers a ping, so that one hung actor
cannot stall every step.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import ray

from cluster.workers.rllib_internals import mark_unhealthy, rollout_actors

ANSWER_TIMEOUT_S = 10.0
PING_TAG = "unresponsive"


class RolloutHealth:
    """Which rollout actors answer."""

    def __init__(self, env_runners: Any):
        self._env_runners = env_runners
        self._unresponsive_since: dict[int, float] = {}
        """By worker index; `time.monotonic()`."""

    def ask(self, question: Callable[[Any], Any], *, without: Collection[int] = ()) -> list[Any]:
        """The answers of all responsive actors; each answer has a `worker_index`."""
        self._collect_pings()
        skipped = {*self._unresponsive_since, *without}
        asked = [index for index in self._env_runners.healthy_env_runner_ids() if index not in skipped]
        if not asked:
            return []
        asked_at = time.monotonic()
        answers = self._env_runners.foreach_env_runner(
            question, remote_worker_ids=asked, local_env_runner=False, timeout_seconds=ANSWER_TIMEOUT_S
        )
        healthy = set(self._env_runners.healthy_env_runner_ids())  # without those that died during the call
        missing = healthy.intersection(asked) - {answer.worker_index for answer in answers}
        self._unresponsive_since.update(dict.fromkeys(missing, asked_at))
        self._ping_unresponsive()
        return answers

    @property
    def unresponsive_s(self) -> dict[int, float]:
        """For how long each unresponsive actor has not answered, by worker index."""
        now = time.monotonic()
        return {index: now - since for index, since in self._unresponsive_since.items()}

    def restart(self, index: int) -> None:
        """Kills an actor's process, even a stopped one; Ray restarts it, and RLlib probes it until then."""
        ray.kill(rollout_actors(self._env_runners)[index], no_restart=False)
        mark_unhealthy(self._env_runners, index)
        self.forget(index)

    def forget(self, index: int) -> None:
        """The actor has left the run or is being restarted."""
        self._unresponsive_since.pop(index, None)

    def _collect_pings(self) -> None:
        """Drops unresponsive actors that have answered their ping or died."""
        if not self._unresponsive_since:
            return
        answered = self._env_runners.fetch_ready_async_reqs(tags=PING_TAG, timeout_seconds=0.0)
        still = set(self._env_runners.healthy_env_runner_ids()) - {index for index, _ in answered}
        self._unresponsive_since = {
            index: since for index, since in self._unresponsive_since.items() if index in still
        }

    def _ping_unresponsive(self) -> None:
        """Sent at once, not at the next call: an optimizer step may lie between, and an actor that recovered
        during it must not be killed for a ping that was sent too late."""
        if self._unresponsive_since:
            # One ping in flight per actor: RLlib sends no second one before the first is answered.
            self._env_runners.foreach_env_runner_async(
                lambda actor: actor.ping(), tag=PING_TAG, remote_worker_ids=list(self._unresponsive_since)
            )
