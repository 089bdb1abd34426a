"""Start of Ray: joins a running cluster, or starts a local one on the loopback address; tasks and actors on
the driver's node."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config.nodes import NodesConfig
from cluster.console.log import info
from cluster.ray_cluster.auth_token import provide_token
from cluster.ray_cluster.encrypted_env import ENCRYPTED, SETUP_HOOK
from cluster.ray_cluster.ray_internals import (
    disable_auto_init,
    keep_loopback_address,
    outer_address,
    running_cluster,
)

LOCALHOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 1.0
ENVIRONMENT = {
    # Raylets end the children of a dead worker: vLLM's core would outlive its engine and keep its memory.
    "RAY_process_group_cleanup_enabled": "1",
    # An idle OpenMP thread spins a moment, then sleeps: on a small machine all processes share the cores.
    "GOMP_SPINCOUNT": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def start_ray(address: str | None, *, nodes: NodesConfig | None = None) -> bool:
    """Joins the cluster at `address` or, inside a Ray job, the job's; else starts Ray on this machine, which
    offers all of `nodes`, listens on loopback only and requires a token. True if it was started."""
    os.environ |= ENVIRONMENT
    disable_auto_init()  # a call to Ray after its shutdown must not start it again
    if ray.is_initialized():
        return False
    runtime_env: dict[str, Any] = {"env_vars": ENVIRONMENT}
    if ENCRYPTED in os.environ:
        runtime_env["worker_process_setup_hook"] = SETUP_HOOK
    init = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
    offered = (nodes or NodesConfig()).offered
    if address:
        with reachable(address):
            init(address=address)
        if absent := sorted(offered.keys() - ray.cluster_resources().keys()):
            info(f"no node offers {', '.join(absent)} yet: the processes that need it are pending")
        return False
    provide_token()
    with on_loopback():
        init(address="local", include_dashboard=False, resources=offered)
    return True


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started inside the block has the address 127.0.0.1, and listens on no other.

    Ray's processes (GCS, raylet, workers, object manager, agents, metrics) listen on all interfaces unless
    their node's address is 127.0.0.1.
    """
    with keep_loopback_address():
        yield


@contextmanager
def reachable(address: str) -> Iterator[None]:
    """Inside the block, `ray.init` also finds a cluster that listens on the loopback address only. Otherwise
    Ray would replace that address by the machine's outer one, and wait for it without end."""
    found = running_cluster(address) if address == "auto" else address
    with on_loopback() if found and _is_on_loopback(found) else nullcontext():
        yield


def _is_on_loopback(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if host not in ("localhost", LOCALHOST) or not port.isdecimal():
        return False
    with socket.socket() as outside:
        outside.settimeout(CONNECT_TIMEOUT_S)
        return outside.connect_ex((outer_address(), int(port))) != 0


def task_on_driver_node(work: Callable[..., object], *, num_returns: int | Literal["streaming"] = 1) -> Any:
    """A Ray task on the driver's node, which has the files, outside the placement group of a Tune trial."""
    return ray.remote(work).options(num_cpus=0, num_returns=num_returns, scheduling_strategy=_this_node())


def actor_on_driver_node(actor: type, *, max_concurrency: int = 4096) -> Any:
    """The same for a Ray actor."""
    strategy = _this_node()
    return ray.remote(actor).options(
        num_cpus=0, scheduling_strategy=strategy, max_concurrency=max_concurrency
    )


def _this_node() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
