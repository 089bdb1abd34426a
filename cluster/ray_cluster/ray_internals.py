"""Private names of Ray's core and of Ray Serve, read from Ray 2.60.0. Check this file when Ray is upgraded.

`cluster/workers/rllib_internals.py` has those of RLlib, `simulators/serving/port_binding.py` that of a
replica."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import auto_init_hook, ray_constants, services
from ray._private.state import state
from ray.serve._private.common import DeploymentID
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

PROCESS_TYPE_RAYLET = ray_constants.PROCESS_TYPE_RAYLET
"""Key of a node's raylet among the processes of `ray.cluster_utils.Cluster`."""


def disable_auto_init() -> None:
    """A call to Ray after its shutdown then raises instead of starting it again."""
    auto_init_hook.enable_auto_connect = False


@contextmanager
def keep_loopback_address() -> Iterator[None]:
    """Inside the block, a node with the address 127.0.0.1 keeps it.

    On Linux `ray.init` replaces it by the machine's outer address, since other nodes might join. This switch
    is how Ray starts on macOS. Ray reads RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER into it once, when it is imported,
    which has happened by now."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def running_cluster(address: str) -> str | None:
    """The address that `auto` stands for on this machine, if a cluster runs here."""
    return services.get_ray_address_from_environment(address, None)


def outer_address() -> str:
    """This machine's address, as Ray finds it."""
    return services.get_node_ip_address()


def draining_nodes() -> Mapping[str, int]:
    """Ids of draining nodes, with their deadlines."""
    return state.get_draining_nodes()


def actor_table() -> list[Mapping[str, Any]]:
    """Ray's record of every actor: `Name`, `Pid`, `State` and others."""
    return list(state.actor_table(None).values())


def serve_controller() -> Any:
    """The actor that runs Serve's deployments. Raises ValueError if there is none."""
    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


def serve_replica(name: str) -> Any:
    """A replica's actor by its name."""
    return ray.get_actor(name, namespace=SERVE_NAMESPACE)


def scale_deployment(name: str, *, app: str, num_replicas: int) -> Any:
    """Reference to the request that the dashboard's own scale button sends: `serve.run` again would restart
    all replicas."""
    deployment = DeploymentID(name=name, app_name=app)
    return serve_controller().update_deployment_replicas.remote(deployment, num_replicas)
