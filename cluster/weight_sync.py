"""The weights on their way from the learners to the engines: one version at a time, beside training.

It refuses to know what waits for them: `send` gives references that are done once the version is live.
"""

from collections.abc import Sequence

import ray
from ray.actor import ActorHandle

from actors.config import EngineConfig, WeightTransport
from cluster.learners import Learners
from cluster.transports import Way, find_transport


class WeightSync:
    """Sends the policy to every engine of a run."""

    def __init__(
        self,
        learners: Learners,
        engines: Sequence[ActorHandle],
        *,
        dtype: str,
        timeout_s: float,
        transport: WeightTransport = "shared_memory",
        workers_per_engine: int = 1,
    ):
        """`dtype` is how the weights travel; `timeout_s` the longest that an engine may take to load them."""
        self.metrics: dict[str, float] = {}
        """What the newest version cost to pack, and the newest live one to load: keys `room/thing/stat`."""
        self._way = Way(
            learners=learners,
            engines=engines,
            transport=transport,
            dtype=dtype,
            workers_per_engine=workers_per_engine,
        )
        self._timeout_s = timeout_s
        self._receiving: list[ray.ObjectRef] = []

    def send(self, policy_version: int) -> list[ray.ObjectRef]:
        """Begins to bring the learners' weights into every engine; waits only for the version before, and
        while the learners are needed. The references are done when this version is live."""
        self.finish()
        self._receiving, sent = self._way.send(policy_version)
        self.metrics |= sent
        return self._receiving

    def finish(self) -> None:
        """Waits until what was sent is live in every engine. Raises what an engine raised, once."""
        receiving, self._receiving = self._receiving, []
        received: list[dict[str, float]] = ray.get(receiving, timeout=self._timeout_s)
        if received:
            self.metrics |= {key: max(one[key] for one in received) for key in received[0]}

    def check(self) -> None:
        """Raises what an engine has raised so far. Does not wait."""
        if self._receiving:
            done, _ = ray.wait(self._receiving, num_returns=len(self._receiving), timeout=0)
            ray.get(done)

    def close(self, *, timeout_s: float) -> None:
        """Lets what was sent arrive, for a run that ends, whatever state its engines are in."""
        if self._receiving:
            ray.wait(self._receiving, num_returns=len(self._receiving), timeout=timeout_s)


def connect(learners: Learners, engines: Sequence[ActorHandle], *, config: EngineConfig) -> WeightSync:
    """The way from learners to engines that fits where they run. Raises ValueError for one that does not."""
    return WeightSync(
        learners,
        engines,
        dtype=config.dtype,
        timeout_s=config.start_timeout_s,
        transport=find_transport(config, learners=learners, engines=engines),
        workers_per_engine=config.tensor_parallel_size,
    )
