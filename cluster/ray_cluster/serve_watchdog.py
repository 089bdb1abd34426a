"""Watchdog for Serve replicas that hang during start-up, for which Serve would wait without a limit: it kills
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

STARTING = "STARTING"
"""Serve's state of a replica that has not answered yet."""
START_TIMEOUT_S = 120.0
"""Maximum start-up time, imports included; usually it is seconds. Serve gives up an application if three
replicas in a row are killed."""
POLL_INTERVAL_S = 5.0
CALL_TIMEOUT_S = 10.0


class ServeWatchdog:
    """Background thread that watches Serve applications until it is closed."""

    def __init__(
        self,
        apps: Sequence[str],
        *,
        start_timeout_s: float = START_TIMEOUT_S,
        poll_interval_s: float = POLL_INTERVAL_S,
    ):
        self._apps = apps
        self._starts = ReplicaStarts(timeout_s=start_timeout_s)
        self._poll_interval_s = poll_interval_s
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serve-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; no call to Ray follows."""
        self._is_closed.set()
        self._thread.join(3 * CALL_TIMEOUT_S)

    def _run(self) -> None:
        while not self._is_closed.wait(self._poll_interval_s):
            # Serve or Ray is restarting, or shutting down.
            with suppress(RayError, ValueError, RuntimeError, OSError, AttributeError):
                self._poll()

    def _poll(self) -> None:
        for name in self._starts.overdue(starting_replicas(self._apps)):
            ray.kill(serve_replica(name))
            warn(f"{name} did not start in time: it is killed, and Serve starts another")


class ReplicaStarts:
    """Time since each replica was first seen starting. Uses its own clock, since Serve's is lost with its
    controller."""

    def __init__(self, *, timeout_s: float, clock: Callable[[], float] = time.monotonic):
        self._timeout_s = timeout_s
        self._clock = clock
        self._since: dict[str, float] = {}

    def overdue(self, names: Collection[str]) -> list[str]:
        """Of the replicas that are starting now, those that were so at every poll for more than `timeout_s`.
        The time of a returned one restarts."""
        now = self._clock()
        self._since = {name: self._since.get(name, now) for name in names}
        overdue = [name for name, since in self._since.items() if now - since > self._timeout_s]
        self._since |= dict.fromkeys(overdue, now)
        return overdue


def starting_replicas(apps: Sequence[str]) -> list[str]:
    """Actor names of replicas that have a process and have not answered yet. One without a process waits for
    resources, which is not its fault. Raises Ray's errors if Serve does not answer."""
    serve: Any = ray.get(serve_controller().get_serve_instance_details.remote(), timeout=CALL_TIMEOUT_S)
    starting = {
        replica["actor_name"]
        for app in apps
        for deployment in serve["applications"].get(app, {}).get("deployments", {}).values()
        for replica in deployment["replicas"]
        if replica["state"] == STARTING
    }
    if not starting:
        return []
    actors = [actor for actor in actor_table() if actor["Name"] in starting]
    return [actor["Name"] for actor in actors if actor["Pid"] and actor["State"] != "DEAD"]
