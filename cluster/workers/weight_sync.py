"""Sends the learners' weights to the engines, one policy version at a time, in parallel with training.

`send` returns references that are done once the version is live. An engine that dies while it receives is
replaced, and its replacement gets the same version before it serves. In a GPU group (NCCL, CUDA IPC) a
learner that dies during a send takes all engines of the group with it."""

import time
from collections.abc import Mapping

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.config import EngineConfig, WeightTransport
from cluster.workers.engine_pool import EnginePool
from cluster.workers.engine_replica import in_one_line, is_gone
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.learner_rpc import RESUME, BrokenSendError, LearnerError
from cluster.workers.weight_transport import WeightRoute, find_transport

LOAD_TIMEOUT_S = 120.0
"""Longest time an engine may take to load weights; the largest policies take seconds."""
POLL_EVERY_S = 2.0
"""Between two health checks of the engines while their weights are waited for."""
MAX_BROKEN_SENDS = 3
"""Consecutive failed sends after which the run stops: not transient any more."""


class WeightSync:
    """Sends the policy to every engine of a run."""

    def __init__(
        self,
        learners: LearnerPool,
        engines: EnginePool,
        *,
        dtype: str,
        timeout_s: float,
        transport: WeightTransport = "shared_memory",
        workers_per_engine: int = 1,
    ):
        """`dtype` is how the weights travel; `timeout_s` the longest that an engine may take to load them."""
        self.metrics: dict[str, float] = {}
        """Cost of packing the newest version and of loading the newest live one: keys `room/thing/stat`."""
        self._route = WeightRoute(
            learners=learners, transport=transport, dtype=dtype, workers_per_engine=workers_per_engine
        )
        self._engines = engines
        self._timeout_s = timeout_s
        self._version = 0
        """The version that the learners hold."""
        self._receiving: dict[ActorHandle, ray.ObjectRef] = {}
        self._num_broken = 0
        """Failed sends since the last successful one."""

    def send(self, policy_version: int) -> list[ray.ObjectRef]:
        """Begins to send the learners' weights to every engine. Blocks only for the version before, and while
        the learners are needed. The references are done when this version is live."""
        self.finish()
        self._version = policy_version
        self._send_to(self._engines.running)
        return list(dict.fromkeys(self._receiving.values()))

    def finish(self) -> None:
        """Blocks until what was sent is live in every living engine. Raises an engine's own error, which any
        other engine would raise too."""
        deadline = time.monotonic() + self._timeout_s
        costs: list[dict[str, float]] = []
        while self._receiving:
            ray.wait(list(self._receiving.values()), num_returns=len(self._receiving), timeout=POLL_EVERY_S)
            costs += self._collect()
            if self._receiving and time.monotonic() > deadline:
                for engine in list(self._receiving):
                    self._lose(engine, f"took longer than {self._timeout_s:g} s to load weights")
            elif self._receiving:
                self._engines.poll()
        if costs:
            self.metrics |= {key: max(one[key] for one in costs) for key in costs[0]}

    def deliver(self) -> None:
        """Marks engines that have loaded their weights as serving, and begins to send the live version to new
        engines: only while the learners hold that version and are free. Never waits for engines. Raises as
        `finish` does."""
        self._collect()
        if self._engines.awaiting_weights:
            # A payload can go to one engine alone; a GPU group always sends to all of its members.
            is_alone = self._route.transport == "shared_memory"
            self._send_to(self._engines.awaiting_weights if is_alone else self._engines.running)

    def close(self, *, timeout_s: float) -> None:
        """Lets what was sent arrive, for a run that ends, whatever the state of its engines."""
        if self._receiving:
            references = list(self._receiving.values())
            ray.wait(references, num_returns=len(references), timeout=timeout_s)

    def _send_to(self, engines: list[ActorHandle]) -> None:
        has_lost_one = False
        while engines:
            try:
                receiving, cost = self._route.send(self._version, engines=engines)
            except BrokenSendError as error:
                return self._abandon(engines, reason=str(error))
            except LearnerError as error:
                # The learners drove the engines themselves, and one of those may have died.
                living = self._living(engines)
                if len(living) < len(engines):
                    engines, has_lost_one = living, True
                    continue
                if not has_lost_one:
                    raise
                return self._abandon(engines, reason=str(error))
            for engine in engines:
                self._engines.mark_receiving(engine)
            self._receiving |= receiving
            self.metrics |= cost
            self._num_broken = 0
            return

    def _abandon(self, engines: list[ActorHandle], *, reason: str) -> None:
        """Replaces all engines of a group whose send broke off: survivors may wait in it for ever, with
        weights of two versions. The replacements get the weights as any new engine does, from restored
        learners. Raises `LearnerError` after `MAX_BROKEN_SENDS`."""
        self._num_broken += 1
        if self._num_broken > MAX_BROKEN_SENDS:
            raise LearnerError(
                f"{reason}, {self._num_broken} times in a row while weights were sent: {RESUME}"
            )
        for engine in engines:
            self._lose(engine, f"sending it weights broke off ({reason})")

    def _living(self, engines: list[ActorHandle]) -> list[ActorHandle]:
        """Those whose processes answer; the others are marked as lost."""
        for engine in engines:
            try:
                ray.get(engine.check.remote(), timeout=self._timeout_s)
            except RayError as error:
                self._lose(engine, in_one_line(error))
        return [engine for engine in engines if engine in self._engines.running]

    def _collect(self) -> list[dict[str, float]]:
        """What loading cost, for each engine that has loaded its weights since the last call."""
        costs = []
        for engine, reference in self._loaded().items():
            try:
                costs.append(ray.get(reference))
            except RayError as error:
                if not is_gone(error):
                    raise  # and again at the next call: the version is not live there
                self._lose(engine, in_one_line(error))
            else:
                del self._receiving[engine]
                self._engines.mark_serving(engine)
        return costs

    def _loaded(self) -> Mapping[ActorHandle, ray.ObjectRef]:
        if not self._receiving:
            return {}
        references = list(dict.fromkeys(self._receiving.values()))
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return {engine: reference for engine, reference in self._receiving.items() if reference in done}

    def _lose(self, engine: ActorHandle, reason: str) -> None:
        self._receiving.pop(engine, None)
        self._engines.mark_lost(engine, reason)


def connect(learners: LearnerPool, engines: EnginePool, *, config: EngineConfig) -> WeightSync:
    """A weight sync with the transport that fits the learners' and engines' GPUs. Raises ValueError if the
    recipe's own does not."""
    return WeightSync(
        learners,
        engines,
        dtype=config.dtype,
        timeout_s=LOAD_TIMEOUT_S,
        transport=find_transport(config, learners=learners, engines=engines.running),
        workers_per_engine=config.tensor_parallel_size,
    )
