"""Serve replicas that hang before they have ever answered: Serve waits for them without limit, as it does for
those that it finds again after its controller has died. They are ended here, and Serve starts others.
"""

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from cluster.console import warn

UNBORN = ("STARTING", "RECOVERING")
"""Serve's states of a replica that it waits for."""
PATIENCE_S = 60.0
"""Longest birth; a rule-based user is there within seconds."""
LOOK_EVERY_S = 5.0
CALL_TIMEOUT_S = 10.0


class ReplicaWatch:
    """Watches one Serve application from a thread, whatever its driver waits for, until it is closed."""

    def __init__(self, app: str, *, patience_s: float = PATIENCE_S, look_every_s: float = LOOK_EVERY_S):
        self._app = app
        self._births = Births(patience_s=patience_s)
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
            with suppress(RayError, ValueError, RuntimeError, OSError):  # Serve or Ray is being started again
                if ray.is_initialized():  # asking would start it
                    self._look()

    def _look(self) -> None:
        for name in self._births.overdue(unborn(self._app)):
            ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))
            warn(f"a replica of {self._app} has hung since its birth: it is ended, Serve starts another")


class Births:
    """How long each replica has been waited for. By a clock of its own: Serve's forgets with its
    controller."""

    def __init__(self, *, patience_s: float, clock: Callable[[], float] = time.monotonic):
        self._patience_s = patience_s
        self._clock = clock
        self._since: dict[str, float] = {}

    def overdue(self, names: Collection[str]) -> list[str]:
        """Of those that are unborn now, the ones that were at every look for longer than `patience_s`."""
        now = self._clock()
        self._since = {name: self._since.get(name, now) for name in names}
        return [name for name, since in self._since.items() if now - since > self._patience_s]


def unborn(app: str) -> list[str]:
    """The actors, by name, of replicas that have a process and that Serve waits for. One without a process
    waits for room, which is no fault of its own. Raises what Ray raises where Serve does not answer."""
    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    serve: Any = ray.get(controller.get_serve_instance_details.remote(), timeout=CALL_TIMEOUT_S)
    deployments = serve["applications"].get(app, {}).get("deployments", {})
    waited_for = {
        replica["actor_name"]
        for deployment in deployments.values()
        for replica in deployment["replicas"]
        if replica["state"] in UNBORN
    }
    if not waited_for:
        return []
    alive = state.actor_table(None, None, "ALIVE").values()
    return [actor["Name"] for actor in alive if actor["Name"] in waited_for]
