"""Nodes that are about to go: a spot machine that was given notice, a pod that was told to end.

Ray tells of them as draining nodes. Its own SIGTERM handler (`ray start --block`, a pod's main process) marks
its node so for RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, 30 s by default, before anything there is ended; both
autoscalers and `ray drain-node` do the same. From then on Ray starts nothing on the node.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from ray._private.state import state
from ray.exceptions import RayError

LOOK_EVERY_S = 2.0
"""Between two questions: a notice leaves half a minute, and the answer is the same for everybody."""


class NodeDrainWatch:
    """Which nodes have been given notice, asked for now and then."""

    def __init__(self, ask: Callable[[], dict[str, int]] = state.get_draining_nodes):
        """`ask` gives them with their deadlines, which are no promises: a node may go at any moment."""
        self._ask = ask
        self._asked_at = -LOOK_EVERY_S
        self._nodes: frozenset[str] = frozenset()

    def nodes(self) -> frozenset[str]:
        """Ray's names of the nodes. What was known, where Ray does not answer just now."""
        if time.monotonic() - self._asked_at >= LOOK_EVERY_S:
            self._asked_at = time.monotonic()
            with suppress(RayError, RuntimeError, OSError):  # Ray's head is being started again, say
                self._nodes = frozenset(self._ask())
        return self._nodes
