"""Watchdog for Serve replicas that hang during start-up, for which Serve waits without a limit: it kills
them, and Serve starts replacements."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.console.log import warn
from cluster.ray_cluster.ray_internals import actor_table, serve_controller, serve_replica

UNBORN = "STARTING"
"""Serve's state of a replica that has not answered yet."""
PATIENCE_S = 120.0
"""Longest birth, imports included; it takes seconds. Serve gives up an application of which three replicas
in a row are ended so."""
LOOK_EVERY_S = 5.0
CALL_TIMEOUT_S = 10.0


class ServeWatchdog:
    """Background thread that watches Serve applications until it is closed."""

    def __init__(
        self, apps: Sequence[str], *, patience_s: float = PATIENCE_S, look_every_s: float = LOOK_EVERY_S
    ):
        self._apps = apps
        self._births = ReplicaStarts(patience_s=patience_s)
        self._look_every_s = look_every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="replica-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Asks Ray nothing any more."""
        self._is_over.set()
        self._thread.join(3 * CALL_TIMEOUT_S)

    def _work(self) -> None:
        while not self._is_over.wait(self._look_every_s):
            # Serve or Ray is being started again, or is just ending.
            with suppress(RayError, ValueError, RuntimeError, OSError, AttributeError):
                self._look()

    def _look(self) -> None:
        for name in self._births.overdue(unborn(self._apps)):
            ray.kill(serve_replica(name))
            warn(f"{name} has hung since its birth: it is ended, and Serve starts another")


class ReplicaStarts:
    """How long each replica has been waited for. By a clock of its own: Serve's forgets with its
    controller."""

    def __init__(self, *, patience_s: float, clock: Callable[[], float] = time.monotonic):
        self._patience_s = patience_s
        self._clock = clock
        self._since: dict[str, float] = {}

    def overdue(self, names: Collection[str]) -> list[str]:
        """Of those that are unborn now, the ones that were at every look for longer than `patience_s`. Who is
        named has as long again to go."""
        now = self._clock()
        self._since = {name: self._since.get(name, now) for name in names}
        overdue = [name for name, since in self._since.items() if now - since > self._patience_s]
        self._since |= dict.fromkeys(overdue, now)
        return overdue


def unborn(apps: Sequence[str]) -> list[str]:
    """The actors, by name, of replicas that have a process and have not answered yet. One without a process
    waits for room, which is no fault of its own. Raises what Ray raises where Serve does not answer."""
    serve: Any = ray.get(serve_controller().get_serve_instance_details.remote(), timeout=CALL_TIMEOUT_S)
    waited_for = {
        replica["actor_name"]
        for app in apps
        for deployment in serve["applications"].get(app, {}).get("deployments", {}).values()
        for replica in deployment["replicas"]
        if replica["state"] == UNBORN
    }
    if not waited_for:
        return []
    actors = [actor for actor in actor_table() if actor["Name"] in waited_for]
    return [actor["Name"] for actor in actors if actor["Pid"] and actor["State"] != "DEAD"]
