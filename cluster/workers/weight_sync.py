"""The weights on their way from the learners to the engines: one version at a time, beside training.

It refuses to know what waits for them: `send` gives references that are done once the version is live. An
engine that dies on the way is replaced, and the one in its place gets the same version before it serves.
In a group of GPUs a learner that dies on the way takes all engines of the group with it.
"""

import time
from collections.abc import Mapping

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.config import EngineConfig, WeightTransport
from cluster.workers.engine_pool import EnginePool
from cluster.workers.engine_replica import in_one_line, is_gone
from cluster.workers.learner_pool import LearnerPool
from cluster.workers.learner_rpc import GO_ON, BrokenSendError, LearnerError
from cluster.workers.weight_transport import WeightRoute, find_transport

LOAD_TIMEOUT_S = 120.0
"""Longest load of weights; the largest take seconds."""
LOOK_EVERY_S = 2.0
"""Between two looks at the engines while their weights are waited for."""
MOST_BROKEN_SENDS = 3
"""In a row: learners that are lost each time that they send are not the machine's mishap."""


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
        """What the newest version cost to pack, and the newest live one to load: keys `room/thing/stat`."""
        self._way = WeightRoute(
            learners=learners, transport=transport, dtype=dtype, workers_per_engine=workers_per_engine
        )
        self._engines = engines
        self._timeout_s = timeout_s
        self._version = 0
        """What the learners hold."""
        self._receiving: dict[ActorHandle, ray.ObjectRef] = {}
        self._num_broken = 0
        """Sends that broke off since the last one that did not."""
        engines.give = self.check

    def send(self, policy_version: int) -> list[ray.ObjectRef]:
        """Begins to bring the learners' weights into every engine; waits only for the version before, and
        while the learners are needed. The references are done when this version is live."""
        self.finish()
        self._version = policy_version
        self._send_to(self._engines.actors)
        return list(dict.fromkeys(self._receiving.values()))

    def finish(self) -> None:
        """Waits until what was sent is live in every engine that lives. Raises what an engine raised that
        another would raise, too."""
        deadline = time.monotonic() + self._timeout_s
        received: list[dict[str, float]] = []
        while self._receiving:
            ray.wait(list(self._receiving.values()), num_returns=len(self._receiving), timeout=LOOK_EVERY_S)
            received += self._take()
            if self._receiving and time.monotonic() > deadline:
                for engine in list(self._receiving):
                    self._lose(engine, f"took longer than {self._timeout_s:g} s to load weights")
            elif self._receiving:
                self._engines.look()
        if received:
            self.metrics |= {key: max(one[key] for one in received) for key in received[0]}

    def check(self) -> None:
        """Takes note of who has loaded its weights, and begins to bring them to engines that are new: only
        while the learners hold what was sent last, and have nothing else to do. Raises what an engine has
        raised so far, as `finish` does. Does not wait for engines."""
        self._take()
        if self._engines.waiting:
            # One engine can be sent a payload; a group of GPUs sends to all that are in it.
            is_alone = self._way.transport == "shared_memory"
            self._send_to(self._engines.waiting if is_alone else self._engines.actors)

    def close(self, *, timeout_s: float) -> None:
        """Lets what was sent arrive, for a run that ends, whatever state its engines are in."""
        if self._receiving:
            references = list(self._receiving.values())
            ray.wait(references, num_returns=len(references), timeout=timeout_s)

    def _send_to(self, engines: list[ActorHandle]) -> None:
        has_lost_one = False
        while engines:
            try:
                receiving, sent = self._way.send(self._version, engines=engines)
            except BrokenSendError as error:
                return self._start_anew(engines, why=str(error))
            except LearnerError as error:
                # The learners drove the engines themselves, and one of those may have died.
                living = self._living(engines)
                if len(living) < len(engines):
                    engines, has_lost_one = living, True
                    continue
                if not has_lost_one:
                    raise
                return self._start_anew(engines, why=str(error))
            for engine in engines:
                self._engines.receives(engine)
            self._receiving |= receiving
            self.metrics |= sent
            self._num_broken = 0
            return

    def _start_anew(self, engines: list[ActorHandle], *, why: str) -> None:
        """Gives up all that were in a group whose sending broke off: whoever still lives there may wait in it
        for ever, with weights of two versions. Those in their place get the weights as any new engine does,
        from learners that are by then what they were. Raises `LearnerError` where it breaks off each time."""
        self._num_broken += 1
        if self._num_broken > MOST_BROKEN_SENDS:
            raise LearnerError(f"{why}, {self._num_broken} times in a row while weights were sent: {GO_ON}")
        for engine in engines:
            self._lose(engine, f"weights broke off on their way to it ({why})")

    def _living(self, engines: list[ActorHandle]) -> list[ActorHandle]:
        """Those of them whose processes answer; the others are given up."""
        for engine in engines:
            try:
                ray.get(engine.check.remote(), timeout=self._timeout_s)
            except RayError as error:
                self._lose(engine, in_one_line(error))
        return [engine for engine in engines if engine in self._engines.actors]

    def _take(self) -> list[dict[str, float]]:
        """What loading cost those that have loaded since the last look."""
        received = []
        for engine, reference in self._done().items():
            try:
                received.append(ray.get(reference))
            except RayError as error:
                if not is_gone(error):
                    raise  # and again to whoever asks next: the version is not live there
                self._lose(engine, in_one_line(error))
            else:
                del self._receiving[engine]
                self._engines.serves(engine)
        return received

    def _done(self) -> Mapping[ActorHandle, ray.ObjectRef]:
        if not self._receiving:
            return {}
        references = list(dict.fromkeys(self._receiving.values()))
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return {engine: reference for engine, reference in self._receiving.items() if reference in done}

    def _lose(self, engine: ActorHandle, why: str) -> None:
        self._receiving.pop(engine, None)
        self._engines.lose(engine, why)


def connect(learners: LearnerPool, engines: EnginePool, *, config: EngineConfig) -> WeightSync:
    """The way from learners to engines that fits where they run. Raises ValueError for one that does not."""
    return WeightSync(
        learners,
        engines,
        dtype=config.dtype,
        timeout_s=LOAD_TIMEOUT_S,
        transport=find_transport(config, learners=learners, engines=engines.actors),
        workers_per_engine=config.tensor_parallel_size,
    )
