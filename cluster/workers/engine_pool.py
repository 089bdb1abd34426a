"""The policy engines of a run: starts as many as are wanted, and replaces engines that die or hang while the
run continues. Rollout actors learn of an engine only once it holds the live weights.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.engines.client import EngineSet
from actors.engines.engine_clock import EngineUsage
from cluster.console.log import info, warn
from cluster.workers.engine_replica import EngineReplica, in_one_line, is_gone

UNRESPONSIVE_S = 30.0
"""An engine that has not answered for so long is killed. Its event loop is never blocked for a second."""
DRAIN_TIMEOUT_S = 60.0
"""Longest wait for the completions of a draining engine; after it, clients retry them on other engines."""
MAX_FAILED_STARTS = 3
"""Consecutive failed starts after which the run stops: not transient any more."""
CALL_TIMEOUT_S = 10.0
START_POLL_S = 1.0


class EngineStartError(RuntimeError):
    """Engines fail to start again and again."""


class EnginePool:
    """All engines of a run."""

    def __init__(
        self,
        create: Callable[[int], ActorHandle],
        *,
        num_engines: int,
        slots_per_engine: int,
        start_timeout_s: float,
    ):
        """`create` makes the actor of the engine with this number; `slots_per_engine` is how many sequences
        one computes at once."""
        self.num_wanted = num_engines
        self.num_lost = 0
        """Engines that died or hung, so far."""
        self._create = create
        self._slots_per_engine = slots_per_engine
        self._start_timeout_s = start_timeout_s
        self._replicas: list[EngineReplica] = []
        self._num_initial = num_engines
        self._num_created = 0
        self._num_failed_starts = 0
        self._version = 0
        """Of the set of serving engines."""
        self._fill()

    def wait(self) -> None:
        """Until the first engines have all started; engines that die or hang meanwhile are replaced. Raises
        what an engine's own start raised, since another would raise it too."""
        while starting := [replica for replica in self._replicas if replica.phase == "starting"]:
            ray.wait([replica.pending for replica in starting], timeout=START_POLL_S)
            for replica in starting:
                if replica.has_answered and (error := replica.start_error()) is not None:
                    raise error
                self._poll_start(replica)
            self._fill()

    @property
    def running(self) -> list[ActorHandle]:
        """Engines that have started and stay: these get weights."""
        phases = ("awaiting_weights", "receiving", "serving")
        return [replica.actor for replica in self._replicas if replica.phase in phases]

    @property
    def awaiting_weights(self) -> list[ActorHandle]:
        """Running engines without weights that are not being sent any."""
        return [replica.actor for replica in self._replicas if replica.phase == "awaiting_weights"]

    @property
    def num_serving(self) -> int:
        return len(self._serving)

    @property
    def is_stable(self) -> bool:
        """Whether there are as many engines as are wanted, and all serve."""
        return len(self._replicas) == self.num_serving == self.num_wanted

    def snapshot(self, *, num_sharing: int) -> EngineSet | None:
        """The serving engines for `num_sharing` rollout actors; None if the run has no engines at all."""
        if not self.num_wanted:
            return None
        serving = tuple(replica.actor for replica in self._serving)
        capacity = self._slots_per_engine * len(serving) / max(1, num_sharing)
        return EngineSet(version=self._version, engines=serving, capacity=capacity)

    def scale(self, num_engines: int) -> None:
        """Starts missing engines; of too many the newest are drained."""
        self.num_wanted = num_engines
        staying = [replica for replica in self._replicas if replica.phase != "draining"]
        staying.sort(key=lambda replica: replica.is_retiring)
        for replica in staying[num_engines:]:
            if replica.phase == "serving":
                self._drain(replica)
            else:  # no client knows it yet
                self._kill(replica)
        self._fill()

    def poll(self) -> None:
        """Notices engines that have started, died, hung or drained, and starts missing ones. Never blocks.
        Raises `EngineStartError` after `MAX_FAILED_STARTS`."""
        for replica in list(self._replicas):
            if replica.phase == "starting":
                self._poll_start(replica)
            elif replica.phase == "draining":
                self._poll_drain(replica)
            else:
                self._poll_health(replica)
        self._retire()
        self._fill()

    def drain_nodes(self, nodes: Collection[str]) -> None:
        """Starts replacements of the engines on these nodes, by Ray's node ids."""
        for replica in list(self._replicas):
            if replica.process is None or replica.process.node_id not in nodes or replica.is_retiring:
                continue
            if replica.phase != "draining":
                warn(f"{replica}: its node is being drained: a replacement is started")
                replica.is_retiring = True
                if replica.phase != "serving":
                    self._kill(replica)
        self._fill()

    def mark_receiving(self, actor: ActorHandle) -> None:
        """Its first weights are on their way."""
        replica = self._find(actor)
        if replica is not None and replica.phase == "awaiting_weights":
            replica.enter("receiving")

    def mark_serving(self, actor: ActorHandle) -> None:
        """It holds the live weights."""
        replica = self._find(actor)
        if replica is not None and replica.phase == "receiving":
            seconds = time.monotonic() - replica.since
            replica.enter("serving")
            self._version += 1
            if not replica.is_initial:
                info(f"{replica} serves | weights after {seconds:.1f}s")

    def mark_lost(self, actor: ActorHandle, reason: str) -> None:
        """It died, hangs or cannot load weights: it is killed and replaced."""
        replica = self._find(actor)
        if replica is None:
            return
        warn(f"{replica} is lost: {reason}: a replacement is started")
        self.num_lost += 1
        self._version += replica.phase == "serving"
        self._kill(replica)
        self._fill()

    def usage(self) -> list[EngineUsage]:
        """What each serving engine spent its time on since the last call; engines that do not answer are left
        out."""
        asked: list[Any] = [replica.actor.usage.remote() for replica in self._serving]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=CALL_TIMEOUT_S) if asked else ([], [])
        usages = []
        for reference in ready:
            try:
                usages.append(ray.get(reference))
            except RayError:  # `poll` handles it
                continue
        return usages

    def stop(self, *, timeout_s: float) -> None:
        """Ends all engines; one that does not stop in time, or is still starting, is killed."""
        stopping: list[Any] = [one.actor.stop.remote() for one in self._replicas if one.phase != "starting"]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=timeout_s)
        for replica in list(self._replicas):
            self._kill(replica)
        self.num_wanted = 0

    @property
    def _serving(self) -> list[EngineReplica]:
        return [replica for replica in self._replicas if replica.phase == "serving"]

    def _drain(self, replica: EngineReplica) -> None:
        self._version += 1
        replica.drain()

    def _retire(self) -> None:
        """Drains retiring engines once enough others serve."""
        serving = self._serving
        num_others = sum(not replica.is_retiring for replica in serving)
        for replica in serving:
            if replica.is_retiring and num_others >= self.num_wanted:
                self._drain(replica)

    def _fill(self) -> None:
        """Starts missing engines."""
        num_staying = sum(one.phase != "draining" and not one.is_retiring for one in self._replicas)
        for _ in range(self.num_wanted - num_staying):
            number, self._num_created = self._num_created, self._num_created + 1
            is_initial = number < self._num_initial
            self._replicas.append(
                EngineReplica.start(self._create(number), name=f"engine {number}", is_initial=is_initial)
            )

    def _poll_start(self, replica: EngineReplica) -> None:
        if replica.has_answered:
            try:
                replica.mark_started(ray.get(replica.pending))
                self._num_failed_starts = 0
            except RayError as error:
                self._handle_failed_start(replica, in_one_line(error))
        elif time.monotonic() - replica.since > self._start_timeout_s:
            self._handle_failed_start(
                replica, f"did not start within start_timeout_s={self._start_timeout_s:g}"
            )

    def _handle_failed_start(self, replica: EngineReplica, reason: str) -> None:
        self._num_failed_starts += 1
        if self._num_failed_starts >= MAX_FAILED_STARTS:
            raise EngineStartError(f"{replica}: {reason}; {MAX_FAILED_STARTS} in a row did not start")
        warn(f"{replica}: {reason}: a replacement is started")
        self._kill(replica)

    def _poll_health(self, replica: EngineReplica) -> None:
        if not replica.has_answered:
            seconds = time.monotonic() - replica.asked_at
            if seconds > UNRESPONSIVE_S:
                self.mark_lost(replica.actor, f"no answer for {seconds:.0f} s")
            return
        try:
            ray.get(replica.pending)
        except RayError as error:
            self.mark_lost(replica.actor, in_one_line(error))
        else:
            replica.ping()

    def _poll_drain(self, replica: EngineReplica) -> None:
        """Ends a draining engine once it has no completion in flight."""
        is_idle, is_expired = False, time.monotonic() - replica.since > DRAIN_TIMEOUT_S
        if replica.has_answered:
            try:
                usage: EngineUsage = ray.get(replica.pending)
                is_idle = usage.duration_s > 0 and usage.idle_s >= usage.duration_s
            except RayError:
                is_expired = True
            else:
                replica.pending = replica.actor.usage.remote()
        if is_idle or is_expired:
            info(f"{replica} was removed")
            self._kill(replica)

    def _kill(self, replica: EngineReplica) -> None:
        self._replicas.remove(replica)
        replica.kill()

    def _find(self, actor: ActorHandle) -> EngineReplica | None:
        return next((replica for replica in self._replicas if replica.actor == actor), None)


def serve_own_weights(engines: EnginePool, *, timeout_s: float) -> None:
    """Engines that wait for weights serve what their model folder holds: no learner sends any. Raises
    GetTimeoutError."""
    for actor in engines.awaiting_weights:
        engines.mark_receiving(actor)
        try:
            ray.get(actor.serve_own_weights.remote(0), timeout=timeout_s)
        except RayError as error:
            if not is_gone(error):
                raise
            engines.mark_lost(actor, in_one_line(error))
        else:
            engines.mark_serving(actor)


def no_engines() -> EnginePool:
    """A pool of none, for scripted policies and endpoints."""

    def create(number: int) -> ActorHandle:
        raise AssertionError("no engine is wanted")

    return EnginePool(create, num_engines=0, slots_per_engine=0, start_timeout_s=0.0)
