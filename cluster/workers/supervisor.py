"""Health checks, elastic membership and weight delivery of a run's processes, done while the driver waits.

Every long wait of the driver calls `tick` every few seconds with the kind of wait, which says what may be
done meanwhile:

| wait                | rollout actors      | engines | weights | learners | scaling requests |
| groups              | work for the buffer | yes     | yes     |          | yes              |
| update              | work for the buffer | yes     | busy    | busy     |                  |
| sft_update          | health only         | yes     | busy    | busy     |                  |
| between_sft_updates | health only         | yes     | yes     |          |                  |
| demonstrations      | too busy to answer  | yes     | yes     | yes      |                  |
| evaluation          | work for its list   | yes     | yes     | yes      |                  |

The buffer is pinged in all of them. Waits for engines alone, in their start and while they load weights, poll
the engines themselves.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from ray.exceptions import RayActorError, RayError

from cluster.ray_cluster.ray_internals import draining_nodes
from cluster.workers.engine_pool import EnginePool
from cluster.workers.rollout_pool import Assignment, RolloutPool

Wait = Literal["groups", "update", "sft_update", "between_sft_updates", "demonstrations", "evaluation"]
POLL_EVERY_S = 3.0
"""Between two health checks during an update, and between two pings of learners and buffer. On average half
of it passes until a death is noticed."""
DRAIN_POLL_EVERY_S = 2.0
"""Between two questions to Ray for draining nodes: a drain leaves half a minute."""


class NodeDrainWatch:
    """Nodes that Ray is draining, such as a spot machine or a pod that will end soon. Asks Ray at most every
    `DRAIN_POLL_EVERY_S`.

    Ray's own SIGTERM handler (`ray start --block`, a pod's main process) marks its node as draining for
    RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, 30 s by default, before it ends anything there; both autoscalers
    and `ray drain-node` do the same. From then on Ray starts nothing on the node.
    """

    def __init__(self, ask: Callable[[], Mapping[str, int]] = draining_nodes):
        """`ask` gives node ids with their deadlines, which are not reliable: a node may end at any time."""
        self._ask = ask
        self._asked_at = -DRAIN_POLL_EVERY_S
        self._nodes: frozenset[str] = frozenset()

    def nodes(self) -> frozenset[str]:
        """Ids of draining nodes; the last known ones if Ray does not answer."""
        if time.monotonic() - self._asked_at >= DRAIN_POLL_EVERY_S:
            self._asked_at = time.monotonic()
            with suppress(RayError, RuntimeError, OSError):  # Ray's head is restarting, for example
                self._nodes = frozenset(self._ask())
        return self._nodes


@dataclass(slots=True, eq=False)
class Supervisor:
    """Looks after the processes of one run."""

    rollouts: RolloutPool
    engines: EnginePool
    _: KW_ONLY
    deliver_weights: Callable[[], object]
    """Begins to send the live weights to engines that wait for them, without waiting."""
    training: Assignment | None = None
    """What rollout actors work on for the steps."""
    check_learners: Callable[[], object] = lambda: None
    """Replaces dead learners."""
    check_buffer: Callable[[], object] = lambda: None
    """Raises if the buffer is lost."""
    poll_scaling: Callable[[], object] = lambda: None
    """Carries out a user's scaling request."""
    drain_watch: NodeDrainWatch = field(default_factory=NodeDrainWatch)
    _polled_at: float = -math.inf
    """When rollout actors were last polled, by `time.monotonic()`."""
    _pinged_at: float = -math.inf
    """When learners and buffer were last pinged."""

    def tick(self, wait: Wait, *, assignment: Assignment | None = None) -> None:
        """One round of the checks that this wait allows; cheap if nothing changed. `assignment` is an
        evaluation's own. Raises if waiting on is pointless: no engine starts, no rollout actor is alive,
        weights cannot be loaded, the buffer is lost."""
        now = time.monotonic()
        if wait == "update" and now - self._polled_at < POLL_EVERY_S:
            return
        self.engines.poll()
        if wait not in ("update", "sft_update"):
            self.deliver_weights()
        if wait == "groups":
            self.poll_scaling()
        if wait != "demonstrations":
            health_only = wait in ("sft_update", "between_sft_updates")
            self._poll_rollouts(None if health_only else assignment or self.training)
            self._polled_at = time.monotonic()
        if now - self._pinged_at >= POLL_EVERY_S:
            if wait in ("demonstrations", "evaluation"):
                self.check_learners()
            self.check_buffer()
            self._pinged_at = time.monotonic()

    def _poll_rollouts(self, assignment: Assignment | None) -> None:
        if nodes := self.drain_watch.nodes():
            self.engines.drain_nodes(nodes)
            self.rollouts.drain_nodes(nodes)
        try:
            self.rollouts.poll(assignment)
        except RayActorError:  # the work source has died: if it is the buffer, that is what to say
            self.check_buffer()
            raise
